// OpenAI's own SDK for JavaScript: streams, schemas, tools and the loop that runs them.
import assert from 'node:assert/strict';
import test from 'node:test';
import OpenAI from 'openai';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { apiKey, baseURL, headers, model } from './where.mjs';

const client = new OpenAI({ baseURL, apiKey, defaultHeaders: headers, maxRetries: 0 });
const ask = (content) => [{ role: 'user', content }];
const Peak = z.object({ name: z.string(), metres: z.number() });
const Climb = z.object({ peak: z.string(), days: z.number() });

test('a stream is put together by its helper', async () => {
  const stream = client.chat.completions.stream({
    model, messages: ask('Say something'), stream: true, stream_options: { include_usage: true },
  });
  let said = '';
  stream.on('content', (delta) => { said += delta; });
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, said);
  assert.ok(said.length > 1);
  assert.equal(final.choices[0].finish_reason, 'stop');
  assert.ok(final.usage.total_tokens > 0);
});

test('a schema is parsed', async () => {
  const answer = await client.chat.completions.parse({
    model, messages: ask('The peak of Wales?'), response_format: zodResponseFormat(Peak, 'peak'),
  });
  Peak.parse(answer.choices[0].message.parsed);
});

test('a streamed schema is parsed', async () => {
  const stream = client.chat.completions.stream({
    model, messages: ask('The peak of Wales?'), response_format: zodResponseFormat(Peak, 'peak'),
  });
  Peak.parse((await stream.finalChatCompletion()).choices[0].message.parsed);
});

for (const stream of [false, true]) {
  test(`tools run until there is an answer, ${stream ? 'streamed' : 'whole'}`, async () => {
    const called = [];
    const runner = client.chat.completions.runTools({
      model,
      stream,
      messages: ask("Use climb for 'Snowdon' in 2 days"),
      tools: [zodFunction({ name: 'climb', parameters: Climb, function: (given) => { called.push(given); return 'done'; } })],
    });
    const last = await runner.finalContent();
    assert.deepEqual(called, [{ peak: 'Snowdon', days: 2 }]);
    assert.ok(last.length > 0);
  });
}

test('an answer comes with its head', async () => {
  const { data, response, request_id } = await client.chat.completions.create({ model, messages: ask('Hello') }).withResponse();
  assert.equal(data.object, 'chat.completion');
  assert.equal(response.headers.get('x-request-id'), request_id);
});

test('what is wrong is an error with its class, parameter and request', async () => {
  await assert.rejects(client.chat.completions.create({ model, messages: ask(7) }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, 'messages[0].content');
    assert.ok(error.requestID);
    return true;
  });
});
