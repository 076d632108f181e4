import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.LongStream;

/**
 * Java: methods that HotSpot compiles. It makes exceptions of SIGSEGV (null,
 * the stack's end, safepoints) and SIGFPE (division), from compiled code.
 */
public class Jit {
    static void same(Object got, Object wanted) {
        if (!got.equals(wanted)) throw new AssertionError(got + ", not " + wanted);
    }

    static class Node {
        int value;
        Node next;
    }

    static int value(Node node) {
        return node.value;
    }

    static int divide(int a, int b) {
        return a / b;
    }

    static int depth;

    static void deep() {
        depth++;
        deep();
    }

    static long sum(int[] data) {
        long sum = 0;
        for (int x : data) sum += x;
        return sum;
    }

    interface Shape {
        double area();
    }

    record Square(double side) implements Shape {
        public double area() {
            return side * side;
        }
    }

    record Circle(double radius) implements Shape {
        public double area() {
            return 3 * radius * radius;
        }
    }

    public static void main(String[] arguments) throws Exception {
        // Null pointers: seldom at first, so that the check is left to the fault.
        Node node = new Node();
        node.value = 3;
        int nulls = 0;
        for (int i = 0; i < 300000; i++) {
            try {
                nulls += value(i % 1000 == 999 ? null : node) - 3;
            } catch (NullPointerException e) {
                nulls++;
            }
        }
        same(nulls, 300);

        int divisions = 0;
        for (int i = 0; i < 200000; i++) {
            try {
                divisions += divide(i, i % 500) * 0;
            } catch (ArithmeticException e) {
                divisions++;
            }
        }
        same(divisions, 400);

        for (int i = 0; i < 5; i++) {
            depth = 0;
            try {
                deep();
                throw new AssertionError("no end of the stack");
            } catch (StackOverflowError e) {
                if (depth < 1000) throw new AssertionError("only " + depth);
            }
        }

        // Vectorized loops and sorts.
        Random random = new Random(42);
        int[] data = random.ints(50000).toArray();
        long wanted = LongStream.range(0, data.length).map(i -> data[(int) i]).sum();
        for (int i = 0; i < 200; i++) same(sum(data), wanted);
        int[] sorted = data.clone();
        Arrays.sort(sorted);
        for (int i = 1; i < sorted.length; i++) if (sorted[i - 1] > sorted[i]) throw new AssertionError("unsorted");
        same(sum(sorted), wanted);
        same(Arrays.binarySearch(sorted, sorted[777]) >= 0, true);

        // A class that comes later makes the compiled call wrong.
        Shape[] shapes = new Shape[1000];
        Arrays.fill(shapes, new Square(2));
        double area = 0;
        for (int round = 0; round < 100; round++) {
            if (round == 60) for (int i = 0; i < 1000; i += 2) shapes[i] = new Circle(1);
            for (Shape shape : shapes) area += shape.area();
        }
        same(area, 60 * 4000.0 + 40 * 3500.0);

        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        digest.update("a".repeat(1000000).getBytes());
        StringBuilder hex = new StringBuilder();
        for (byte b : digest.digest()) hex.append(String.format("%02x", b));
        same(hex.toString(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");

        // Threads, locks, memory to collect.
        AtomicLong atomic = new AtomicLong();
        long[] locked = {0};
        List<Thread> threads = new ArrayList<>();
        for (int t = 0; t < 4; t++) {
            Thread thread = new Thread(() -> {
                List<String> garbage = new ArrayList<>();
                for (int i = 0; i < 20000; i++) {
                    atomic.incrementAndGet();
                    synchronized (locked) {
                        locked[0]++;
                    }
                    garbage.add("string " + i);
                    if (garbage.size() > 3000) garbage.clear();
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) thread.join();
        same(atomic.get(), 80000L);
        same(locked[0], 80000L);
        System.out.println("done");
    }
}
