// The Vercel AI SDK, which checks every answer and every chunk against its schemas.
import assert from 'node:assert/strict';
import test from 'node:test';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai';
import { z } from 'zod';
import { apiKey, baseURL, headers, model as name } from './where.mjs';

const providers = {
  compatible: createOpenAICompatible({
    name: 'strata', baseURL, apiKey, headers, includeUsage: true, supportsStructuredOutputs: true,
  })(name),
  openai: createOpenAI({ baseURL, apiKey, headers }).chat(name),
};
const Peak = z.object({ name: z.string(), metres: z.number() });
const climb = () => {
  const called = [];
  const inputSchema = z.object({ peak: z.string(), days: z.number() });
  const execute = async (given) => { called.push(given); return 'done'; };
  return { called, tools: { climb: tool({ description: 'Climbs a mountain', inputSchema, execute }) } };
};
const prompt = "Use climb for 'Snowdon' in 2 days";

for (const [kind, model] of Object.entries(providers)) {
  const common = { model, maxRetries: 0 };

  test(`${kind}: a text`, async () => {
    const answer = await generateText({ ...common, prompt: 'Say something' });
    assert.ok(answer.text.length > 0);
    assert.equal(answer.finishReason, 'stop');
    assert.ok(answer.usage.inputTokens > 0 && answer.usage.outputTokens > 0);
    assert.deepEqual(answer.warnings ?? [], []);
  });

  test(`${kind}: a streamed text`, async () => {
    const failed = [];
    const answer = streamText({ ...common, prompt: 'Say something', onError: ({ error }) => failed.push(error) });
    const pieces = [];
    for await (const piece of answer.textStream) pieces.push(piece);
    assert.deepEqual(failed, []);
    assert.equal(pieces.join(''), await answer.text);
    assert.ok(pieces.length > 1);
    assert.equal(await answer.finishReason, 'stop');
    assert.ok((await answer.usage).outputTokens > 0);
  });

  test(`${kind}: tools and what comes of them`, async () => {
    const { called, tools } = climb();
    const answer = await generateText({ ...common, prompt, tools, stopWhen: stepCountIs(3) });
    assert.deepEqual(called, [{ peak: 'Snowdon', days: 2 }]);
    assert.equal(answer.steps.length, 2);
    assert.equal(answer.steps[0].finishReason, 'tool-calls');
    assert.ok(answer.text.length > 0);
  });

  test(`${kind}: streamed tools and what comes of them`, async () => {
    const { called, tools } = climb();
    const answer = streamText({ ...common, prompt, tools, stopWhen: stepCountIs(3) });
    const kinds = [];
    for await (const part of answer.fullStream) kinds.push(part.type);
    assert.ok(!kinds.includes('error'), kinds.join(' '));
    assert.ok(kinds.includes('tool-call') && kinds.includes('tool-result'));
    assert.deepEqual(called, [{ peak: 'Snowdon', days: 2 }]);
    assert.ok((await answer.text).length > 0);
  });

  test(`${kind}: an object`, async () => {
    const answer = await generateObject({ ...common, schema: Peak, prompt: 'The peak of Wales?' });
    Peak.parse(answer.object);
  });

  test(`${kind}: a streamed object`, async () => {
    const answer = streamObject({ ...common, schema: Peak, prompt: 'The peak of Wales?' });
    for await (const partial of answer.partialObjectStream) assert.equal(typeof partial, 'object');
    Peak.parse(await answer.object);
  });
}
