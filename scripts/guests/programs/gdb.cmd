# gdb in the guest: breakpoints, steps, watchpoints in debug registers, calls
# of functions of the program, changes of it, a crash. Its output is compared
# with the host's.
set pagination off
set confirm off
set disable-randomization on
set print inferior-events off
set print thread-events off
set print frame-arguments presence
break step
commands
silent
printf "step %d\n", n
continue
end
break factorial if n == 4
commands
silent
printf "factorial %d\n", n
backtrace
finish
end
run
printf "returned %d\n", $
delete
continue

# Single steps: how many and where from one function to its end.
break step
run
delete
set $steps = 0
set $hash = (unsigned long)0
while $steps < 250
  stepi
  set $steps = $steps + 1
  set $hash = $hash * 31 + (unsigned long)$pc + ((int)$eflags & 0x8d5)
end
printf "%d steps, %lx\n", $steps, $hash

# Watchpoints in the debug registers.
tbreak main
run
hbreak step if n == 17
watch watched if watched >= 48
continue
printf "watched %d other %d\n", watched, other
continue
printf "at n %d\n", n
continue
printf "watched %d other %d\n", watched, other
delete
awatch other
tbreak step
continue
continue
printf "other %d\n", other
continue
printf "other %d\n", other
delete

# The program's functions called, its memory and registers changed.
printf "called %d\n", factorial(7)
set var other = 1000
tbreak factorial
continue
printf "other %d n %d\n", other, n
return 5
continue

run crash
printf "signal %d\n", $_siginfo.si_signo
x/i $pc
kill
