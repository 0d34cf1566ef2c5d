// Walks the table of cases: walk.js CASES TARGETS. Speaks with clients/run by lines on standard input and output.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { status } from "@grpc/grpc-js";
import { SignOutClient, SignOutFailed, type Answer } from "./sign_out.js";

type Step = Record<string, any>;
type Seen = Record<string, string>;

const replies = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
// Clients outlive a case, because a connection that survives is what some cases are about.
const clients = new Map<string, SignOutClient>();
const targets = JSON.parse(readFileSync(process.argv[3]!, "utf8"));
let started: Promise<Seen>;
let cancel: AbortController;
let watch: AsyncGenerator<string>;

const steps: Record<string, (step: Step) => Promise<void>> = {
  ask: (step) => ask(step["what"]),
  call: (step) => timed(step, (client) => client.attempt(step["pool"], step["user"], options(step))),
  sign_out: (step) => timed(step, (client) => client.signOut(step["pool"], step["user"], options(step))),
  async start(step) {
    cancel = new AbortController();
    started = seen(dial(step).attempt(step["pool"], step["user"], { ...options(step), signal: cancel.signal }));
  },
  async cancel(step) {
    cancel.abort();
    check(step, await started);
  },
  async finish(step) {
    check(step, await started);
  },
  async watch(step) {
    watch = dial(step).watchHealth(step["service"]);
  },
  async seen(step) {
    const { value } = await watch.next();
    if (value !== step["status"]) throw new Error(`health is ${value}, not ${step["status"]}`);
  },
  async ended(step) {
    let others: string[] = [];
    try {
      for await (const status of watch) if (status !== step["status"]) others.push(status);
    } catch {
      return;
    }
    if (others.length) throw new Error(`the watch went on with ${others}`);
  },
};

function options(step: Step) {
  return { timeoutMs: step["deadline_ms"], traceparent: step["traceparent"], waitForReady: step["wait_for_ready"] };
}

function dial(step: Step): SignOutClient {
  const name = step["over"];
  let client = step["fresh"] ? undefined : clients.get(name);
  if (!client) {
    const { addresses, ca, cert, key, token_file: tokenFile, service_config: serviceConfig } = targets[name];
    client = new SignOutClient(addresses[0], { ca, cert, key, tokenFile, serviceConfig });
    clients.set(name, client);
  }
  return client;
}

async function timed(step: Step, call: (client: SignOutClient) => Promise<Answer>) {
  const client = dial(step);
  const began = performance.now();
  const actual = await seen(call(client));
  const took = performance.now() - began;
  check(step, actual);
  if (took < (step["at_least_ms"] ?? 0) || took > (step["at_most_ms"] ?? took)) throw new Error(`it took ${took} ms`);
}

/** What the table compares, as text. */
async function seen(call: Promise<Answer>): Promise<Seen> {
  try {
    const answer = await call;
    return { code: "OK", request_id: String(answer.aws_request_id !== ""), signed_out_at: String(answer.signed_out_at !== null) };
  } catch (error) {
    if (!(error instanceof SignOutFailed)) throw error;
    return {
      code: status[error.code],
      reason: error.reason,
      fault: error.fault,
      retryable: String(error.retryable),
      outcome: error.outcome,
      aws_error_code: error.metadata["aws_error_code"] ?? "",
      retry_after: String(error.retryAfterMs !== undefined),
      request_id: String(error.requestId !== ""),
      fields: error.fields.join(","),
      does: error.does,
    };
  }
}

function check(step: Step, actual: Seen) {
  const wrong = Object.entries<string>(step["expect"]).filter(([key, value]) => actual[key] !== value);
  if (wrong.length) throw new Error(wrong.map(([key, value]) => `${key} is "${actual[key]}", not "${value}"`).join("; "));
}

async function ask(what: string) {
  console.log("ask", what);
  const { value: reply } = await replies.next();
  if (reply !== "done") throw new Error(`${what}: ${reply}`);
}

const { defaults, cases } = JSON.parse(readFileSync(process.argv[2]!, "utf8"));
for (const { name, in: languages, steps: list } of cases) {
  if (languages && !languages.includes("node")) continue;
  try {
    await ask(`begin ${name}`);
    for (const step of list) {
      const run = steps[step.do];
      if (!run) throw new Error(`no such step: ${step.do}`);
      await run({ ...defaults, ...step });
    }
    console.log("pass", name);
  } catch (error) {
    console.log("fail", name, "::", String(error).replaceAll("\n", " "));
  }
}
process.exit();
