// A client made in Node from proto/ at run time, against a live server that serves model_repository.
//
//     SCONCE_ADDRESS=127.0.0.1:8001 node --test
//
// CommonJS, so that NODE_PATH may point at packages that were installed outside the tree.

'use strict';

const { after, before, describe, test } = require('node:test');
const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const ROOT = path.resolve(__dirname, '..', '..', '..');
const ADDRESS = process.env.SCONCE_ADDRESS;
assert.ok(ADDRESS, 'set SCONCE_ADDRESS to the gRPC address of a server that serves model_repository');

const definition = protoLoader.loadSync(['grpc_service.proto', 'health.proto'], {
  includeDirs: [path.join(ROOT, 'proto')],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { inference, grpc: standard } = grpc.loadPackageDefinition(definition);
const UNLIMITED = { 'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1 };

function connect(Service = inference.GRPCInferenceService, options = {}) {
  return new Service(ADDRESS, grpc.credentials.createInsecure(), { ...UNLIMITED, ...options });
}

/** A unary call as a promise, with a deadline that no test should meet. */
function call(client, method, request, deadline = Date.now() + 30_000) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** The call must fail with this code and a message that holds each of the parts. */
async function refused(code, parts, promise) {
  await assert.rejects(promise, (error) => {
    assert.equal(grpc.status[error.code], code, error.details);
    for (const part of parts) assert.ok(error.details.includes(part), `${part} in: ${error.details}`);
    return true;
  });
}

const bytesOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);

/** The floats of a raw output; copied, because a Buffer need not be aligned. */
function floats(buffer) {
  assert.equal(buffer.length % 4, 0);
  return new Float32Array(buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.length));
}

function int64s(buffer) {
  return Array.from({ length: buffer.length / 8 }, (_, index) => Number(buffer.readBigInt64LE(8 * index)));
}

/** BYTES as the protocol has them: each element a little-endian length and its bytes. */
function packed(elements) {
  return Buffer.concat(
    elements.flatMap((element) => {
      const data = Buffer.from(element);
      const length = Buffer.alloc(4);
      length.writeUInt32LE(data.length);
      return [length, data];
    }),
  );
}

function unpacked(buffer) {
  const elements = [];
  for (let offset = 0; offset < buffer.length; ) {
    const length = buffer.readUInt32LE(offset);
    elements.push(buffer.subarray(offset + 4, offset + 4 + length).toString());
    offset += 4 + length;
  }
  return elements;
}

/** The outputs by name, each with its type, shape and raw bytes. */
function outputs(answer) {
  assert.equal(answer.raw_output_contents.length, answer.outputs.length);
  return Object.fromEntries(
    answer.outputs.map(({ name, datatype, shape }, index) => [
      name,
      { datatype, shape, raw: answer.raw_output_contents[index] },
    ]),
  );
}

/** The data of a .npy file of floats: a magic number, a version, the header's length, the header. */
function readNpy(file) {
  const data = fs.readFileSync(file);
  assert.equal(data.toString('latin1', 1, 6), 'NUMPY');
  return data.subarray(10 + data.readUInt16LE(8));
}

const row = (start, step) => Float32Array.from({ length: 16 }, (_, index) => start + step * index);

/** A request to add_sub, whose answer is sums and differences of these two. */
function addSub(first, second, options = {}) {
  return {
    model_name: 'add_sub',
    inputs: ['INPUT0', 'INPUT1'].map((name) => ({ name, datatype: 'FP32', shape: [first.length / 16, 16] })),
    raw_input_contents: [bytesOf(first), bytesOf(second)],
    ...options,
  };
}

function checkAddSub(answer, first, second) {
  const { OUTPUT__0: sum, OUTPUT__1: difference } = outputs(answer);
  assert.deepEqual(sum.shape, [first.length / 16, 16]);
  assert.equal(sum.datatype, 'FP32');
  assert.deepEqual(floats(sum.raw), first.map((value, index) => value + second[index]));
  assert.deepEqual(floats(difference.raw), first.map((value, index) => value - second[index]));
}

describe('a client made in Node', () => {
  let client;
  before(() => {
    client = connect();
  });
  after(() => client.close());

  test('asks for the server and its models', async () => {
    assert.deepEqual(await call(client, 'ServerLive', {}), { live: true });
    assert.deepEqual(await call(client, 'ServerReady', {}), { ready: true });
    assert.equal((await call(client, 'ServerMetadata', {})).name, 'sconce');
    assert.deepEqual(await call(client, 'ModelReady', { name: 'digits' }), { ready: true });
    assert.deepEqual(await call(client, 'ModelReady', { name: 'absent' }), { ready: false });

    const digits = await call(client, 'ModelMetadata', { name: 'digits' });
    assert.deepEqual(digits.inputs, [{ name: 'image', datatype: 'FP32', shape: [-1, 1, 8, 8] }]);
    assert.deepEqual(digits.outputs, [{ name: 'scores', datatype: 'FP32', shape: [-1, 10] }]);
    const { config } = await call(client, 'ModelConfig', { name: 'add_sub' });
    assert.equal(config.max_batch_size, 8);
    const { models } = await call(client, 'RepositoryIndex', {});
    assert.deepEqual(models.map((model) => [model.name, model.version, model.state]).sort(), [
      ['add_sub', '1', 'READY'],
      ['char_lm', '1', 'READY'],
      ['dict_stats', '1', 'READY'],
      ['digits', '1', 'READY'],
      ['running_sum', '1', 'READY'],
      ['text_stats', '1', 'READY'],
    ]);
  });

  test('asks for health', async () => {
    const health = connect(standard.health.v1.Health);
    assert.deepEqual(await call(health, 'Check', { service: '' }), { status: 'SERVING' });
    assert.deepEqual(await call(health, 'Check', { service: 'digits' }), { status: 'SERVING' });
    await refused('NOT_FOUND', [], call(health, 'Check', { service: 'absent' }));
    health.close();
  });

  test('reads a digit', async () => {
    const answer = await call(client, 'ModelInfer', {
      model_name: 'digits',
      id: 'from node',
      inputs: [{ name: 'image', datatype: 'FP32', shape: [1, 1, 8, 8] }],
      raw_input_contents: [readNpy(path.join(ROOT, 'tests', 'data', 'digit.npy'))],
    });
    assert.equal(answer.model_name, 'digits');
    assert.equal(answer.model_version, '1');
    assert.equal(answer.id, 'from node');
    const { scores } = outputs(answer);
    assert.deepEqual(scores.shape, [1, 10]);
    const values = floats(scores.raw);
    assert.equal(values.indexOf(Math.max(...values)), 7);
    assert.ok(Math.abs(values.reduce((sum, value) => sum + value) - 1) < 1e-5);
    assert.ok(Math.abs(values[7] - 0.99935) < 1e-4, `${values[7]}`);
  });

  test('reads a digit as a class', async () => {
    const answer = await call(client, 'ModelInfer', {
      model_name: 'digits',
      inputs: [{ name: 'image', datatype: 'FP32', shape: [1, 1, 8, 8] }],
      outputs: [{ name: 'scores', parameters: { classification: { int64_param: 2 } } }],
      raw_input_contents: [readNpy(path.join(ROOT, 'tests', 'data', 'digit.npy'))],
    });
    const { scores } = outputs(answer);
    assert.equal(scores.datatype, 'BYTES');
    assert.deepEqual(scores.shape, [1, 2]);
    assert.match(unpacked(scores.raw)[0], /^0\.999\d*:7:seven$/);
  });

  test('sends raw contents', async () => {
    const [first, second] = [row(1, 0.5), row(-3, 2)];
    checkAddSub(await call(client, 'ModelInfer', addSub(first, second)), first, second);
  });

  test('sends typed contents, and gets raw ones', async () => {
    const [first, second] = [row(7, 1), row(0.25, -4)];
    const request = addSub(first, second);
    delete request.raw_input_contents;
    request.inputs[0].contents = { fp32_contents: Array.from(first) };
    request.inputs[1].contents = { fp32_contents: Array.from(second) };
    checkAddSub(await call(client, 'ModelInfer', request), first, second);
  });

  test('sends a batch', async () => {
    const first = Float32Array.from({ length: 8 * 16 }, (_, index) => index);
    const second = Float32Array.from({ length: 8 * 16 }, (_, index) => 1000 - 3 * index);
    checkAddSub(await call(client, 'ModelInfer', addSub(first, second)), first, second);
  });

  test('sends texts, raw and typed', async () => {
    const lines = ['Hello, World!', 'Grüße 日本語 🔥', '', 'a  b'];
    const input = { name: 'text', datatype: 'BYTES', shape: [lines.length] };
    const raw = { model_name: 'text_stats', inputs: [input], raw_input_contents: [packed(lines)] };
    const contents = { bytes_contents: lines.map((line) => Buffer.from(line)) };
    const typed = { model_name: 'text_stats', inputs: [{ ...input, contents }] };
    for (const request of [raw, typed]) {
      const { clean, words } = outputs(await call(client, 'ModelInfer', request));
      assert.equal(clean.datatype, 'BYTES');
      assert.deepEqual(clean.shape, [4]);
      assert.deepEqual(unpacked(clean.raw), ['hello world', 'grüße 日本語 🔥', '', 'a b']);
      assert.equal(words.datatype, 'INT64');
      assert.deepEqual(int64s(words.raw), [2, 3, 0, 2]);
    }
  });

  test('sends no texts at all', async () => {
    const answer = await call(client, 'ModelInfer', {
      model_name: 'text_stats',
      inputs: [{ name: 'text', datatype: 'BYTES', shape: [0] }],
      raw_input_contents: [Buffer.alloc(0)],
    });
    const { clean, words } = outputs(answer);
    assert.deepEqual([clean.shape, words.shape], [[0], [0]]);
    assert.deepEqual([clean.raw.length, words.raw.length], [0, 0]);
  });

  test('sends 24 MB and gets them back', async () => {
    const values = Float32Array.from({ length: 6_000_000 }, (_, index) => index % 1021);
    const answer = await call(client, 'ModelInfer', {
      model_name: 'dict_stats',
      inputs: [{ name: 'values', datatype: 'FP32', shape: [values.length] }],
      raw_input_contents: [bytesOf(values)],
    });
    const { weighted, mean } = outputs(answer);
    assert.ok(weighted.raw.equals(bytesOf(values)));
    assert.deepEqual(mean.shape, [1]);
  });

  test('compresses', async () => {
    const algorithms = grpc.compressionAlgorithms;
    for (const algorithm of [algorithms.gzip, algorithms.deflate]) {
      const compressing = connect(undefined, { 'grpc.default_compression_algorithm': algorithm });
      const [first, second] = [row(0, 0), row(1, 0)];
      checkAddSub(await call(compressing, 'ModelInfer', addSub(first, second)), first, second);
      compressing.close();
    }
  });

  test('is told what is wrong', async () => {
    const [first, second] = [row(0, 1), row(1, 1)];
    const infer = (changes) => call(client, 'ModelInfer', addSub(first, second, changes));
    await refused('NOT_FOUND', ["Request for unknown model: 'absent' is not found"], infer({ model_name: 'absent' }));
    await refused('NOT_FOUND', ['version 9 is not found'], infer({ model_version: '9' }));
    await refused('INVALID_ARGUMENT', ['x1'], infer({ model_version: 'x1' }));
    await refused('INVALID_ARGUMENT', ['INPUT0'], infer({ raw_input_contents: [Buffer.alloc(3), bytesOf(second)] }));

    const [input0, input1] = addSub(first, second).inputs;
    const inputs = (...list) => infer({ inputs: list });
    await refused('INVALID_ARGUMENT', ['INPUT1', '[-1,16]', '[1,4,4]'], inputs(input0, { ...input1, shape: [1, 4, 4] }));
    await refused('INVALID_ARGUMENT', ['INPUT1', 'FP32', 'FP16'], inputs(input0, { ...input1, datatype: 'FP16' }));
    await refused('INVALID_ARGUMENT', ['wrong'], inputs(input0, { ...input1, name: 'wrong' }));

    const model = {
      model_name: 'dict_stats',
      inputs: [{ name: 'weights', datatype: 'FP32', shape: [1] }],
      raw_input_contents: [Buffer.alloc(4)],
    };
    await refused('INTERNAL', ["dict_stats needs the input 'values'"], call(client, 'ModelInfer', model));
    await refused('DEADLINE_EXCEEDED', [], call(client, 'ModelInfer', addSub(first, second), Date.now() - 1));
    await refused('UNIMPLEMENTED', [], call(client, 'SystemSharedMemoryStatus', {}));
    checkAddSub(await infer({}), first, second);
  });

  test('gets the right answer to each of 200 requests at once', async () => {
    await Promise.all(
      Array.from({ length: 200 }, async (_, index) => {
        const [first, second] = [row(index, 1), row(3 * index, -1)];
        const answer = await call(client, 'ModelInfer', addSub(first, second, { id: `${index}` }));
        assert.equal(answer.id, `${index}`);
        checkAddSub(answer, first, second);
      }),
    );
  });

  test('has a conversation', async () => {
    const stream = client.ModelStreamInfer({ deadline: Date.now() + 30_000 });
    const rows = Array.from({ length: 100 }, (_, index) => [row(index, 0.5), row(1, index)]);
    rows.forEach(([first, second], index) => stream.write(addSub(first, second, { id: `${index}` })));
    stream.write({ model_name: 'absent', id: 'last' });
    stream.end();
    const answers = [];
    for await (const answer of stream) answers.push(answer);
    assert.equal(answers.length, 101);
    rows.forEach(([first, second], index) => {
      const { error_message: error, infer_response: answer } = answers[index];
      assert.deepEqual([error, answer.id], ['', `${index}`]);
      assert.equal(answer.parameters.triton_final_response.bool_param, true);
      checkAddSub(answer, first, second);
    });
    const { error_message: error, infer_response: failed } = answers[100];
    assert.deepEqual([error, failed.id], ["Request for unknown model: 'absent' is not found", 'last']);
  });

  test('reads a text as it is written', async () => {
    const request = (id, seed, steps) => ({
      model_name: 'char_lm',
      id,
      parameters: { max_steps: { int64_param: steps } },
      inputs: [
        { name: 'prompt', datatype: 'BYTES', shape: [1, 1] },
        { name: 'seed', datatype: 'INT64', shape: [1, 1] },
      ],
      raw_input_contents: [packed(['Alice ']), Buffer.from(BigInt64Array.of(seed).buffer)],
    });
    const stream = client.ModelStreamInfer({ deadline: Date.now() + 30_000 });
    stream.write(request('first', 0n, 80));
    stream.write(request('second', 1n, 30));
    stream.write({ model_name: 'char_lm', id: 'wrong' });
    stream.end();
    const [written, ended] = [{ first: [], second: [] }, []];
    for await (const { error_message: error, infer_response: answer } of stream) {
      if (answer.parameters.triton_final_response.bool_param) ended.push(answer.id);
      if (answer.id === 'wrong') assert.match(error, /prompt/);
      else written[answer.id].push(...unpacked(outputs(answer).text.raw));
    }
    assert.deepEqual(ended.sort(), ['first', 'second', 'wrong']);
    assert.equal(written.first.length, 80);
    const text = "felt the stall as she said the Hatter. 'I was not the moment with the words 'Oh!";
    assert.equal(written.first.join(''), text);
    const collected = outputs(await call(client, 'ModelInfer', request('', 1n, 30)));
    assert.deepEqual(unpacked(collected.text.raw), [written.second.join('')]);
    assert.notEqual(written.second.join(''), text.slice(0, 30));
  });
});
