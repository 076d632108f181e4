// Node.js: functions that V8 compiles, throws away and compiles again, regular
// expressions, WebAssembly, workers. The results are this script's own sums,
// computed in two ways, or known values.
'use strict';
const assert = require('assert');
const crypto = require('crypto');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');

function hot(n) {
    let a = 1, b = 0;
    for (let i = 0; i < n; i++) {
        a = (Math.imul(a, 1664525) + 1013904223) | 0;
        b = (b ^ (a >>> 7)) + i | 0;
    }
    return b;
}

if (!isMainThread) {
    parentPort.postMessage(hot(workerData));
} else {
    // The same in arithmetic that nobody compiles to machine integers.
    const slow = (n) => {
        let a = 1n, b = 0n;
        for (let i = 0n; i < BigInt(n); i++) {
            a = BigInt.asIntN(32, a * 1664525n + 1013904223n);
            b = BigInt.asIntN(32, (b ^ (BigInt.asUintN(32, a) >> 7n)) + i);
        }
        return Number(b);
    };
    assert.strictEqual(hot(20000), slow(20000));
    for (let i = 0; i < 30; i++) assert.strictEqual(hot(3000), slow(3000));

    // Types change: what was compiled no longer holds.
    const add = (x, y) => x + y;
    for (let round = 0; round < 20; round++) {
        let sum = 0;
        for (let i = 0; i < 5000; i++) sum = add(sum, i);
        assert.strictEqual(sum, 12497500);
        sum = 0;
        for (let i = 0; i < 5000; i++) sum = add(sum, i + 0.5);
        assert.strictEqual(sum, 12500000);
        assert.strictEqual(add('a', round), 'a' + String(round));
        assert.strictEqual(add(2 ** 31 - 1, 1), 2147483648);
    }

    // Functions made at run time.
    let total = 0;
    for (let i = 0; i < 400; i++) {
        const f = new Function('x', `let s = 0; for (let j = 0; j < 50; j++) s += x * ${i} + j; return s;`);
        total += f(3);
    }
    assert.strictEqual(total, 50 * 3 * (399 * 400 / 2) + 400 * (49 * 50 / 2));

    // Regular expressions become machine code as well.
    const text = 'The quick brown fox jumps over the lazy dog. '.repeat(500);
    for (let i = 0; i < 20; i++) {
        assert.strictEqual(text.match(/\b(\w)(\w*)\b/g).length, 4500);
        assert.strictEqual(text.replace(/(quick|lazy) (\w+)/g, '$2 $1').length, text.length);
    }

    // Typed arrays, floating point.
    const size = 48;
    const m = new Float64Array(size * size).map((_, i) => i % 7 - 3);
    let product = m;
    for (let power = 0; power < 3; power++) {
        const next = new Float64Array(size * size);
        for (let i = 0; i < size; i++)
            for (let j = 0; j < size; j++) {
                let s = 0;
                for (let k = 0; k < size; k++) s += product[i * size + k] * m[k * size + j];
                next[i * size + j] = s;
            }
        product = next;
    }
    const whole = Array.from(m, (x) => BigInt(x));
    const row = (v) => Array.from({ length: size }, (_, j) => v.reduce((s, x, k) => s + x * whole[k * size + j], 0n));
    const first = row(row(row(whole.slice(0, size))));
    for (let j = 0; j < size; j++) assert.strictEqual(BigInt(product[j]), first[j]);

    // WebAssembly: (func (param i32) (result i32)), a factorial by recursion.
    const wasm = new Uint8Array([
        0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10, 23, 1, 21, 0,
        32, 0, 69, 4, 127, 65, 1, 5, 32, 0, 32, 0, 65, 1, 107, 16, 0, 108, 11, 11]);
    const f = new WebAssembly.Instance(new WebAssembly.Module(wasm)).exports.f;
    for (let i = 0; i < 20000; i++) assert.strictEqual(f(12), 479001600);

    // An exception out of deep recursion, and memory to collect.
    const deep = (n) => deep(n + 1) + 1;
    for (let i = 0; i < 3; i++) assert.throws(() => deep(0), RangeError);
    let list = [];
    for (let i = 0; i < 100000; i++) {
        list.push({ i, s: 'x' + i });
        if (list.length > 5000) list = list.slice(2500);
    }
    assert.strictEqual(list[list.length - 1].s, 'x99999');

    assert.strictEqual(crypto.createHash('sha256').update('a'.repeat(1000000)).digest('hex'),
        'cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0');

    const wanted = hot(300000);
    let open = 3;
    for (let i = 0; i < open; i++)
        new Worker(__filename, { workerData: 300000 }).on('message', (got) => {
            assert.strictEqual(got, wanted);
            if (--open === 0) console.log('done');
        });
}
