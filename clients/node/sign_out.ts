// Signs users out of Amazon Cognito, everywhere, through the sidecar. One file to copy into a service.

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { protoPath as healthProto } from "grpc-health-check";
import type { AdminUserGlobalSignOutResponse__Output as Answer } from "./generated/cognito/signout/v1/AdminUserGlobalSignOutResponse.js";
import type { SignOutServiceClient } from "./generated/cognito/signout/v1/SignOutService.js";
import type { ProtoGrpcType } from "./generated/sign_out.js";

export type { Answer };

const MAX_ATTEMPTS = 3;
// The folder `proto` of the sidecar's repository, copied beside this file or named by PROTO.
const PROTO = process.env["PROTO"] ?? new URL("proto", import.meta.url).pathname;
const definition = loadSync(["cognito/signout/v1/sign_out.proto", "google/rpc/error_details.proto", healthProto], {
  includeDirs: [PROTO],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const packages = grpc.loadPackageDefinition(definition) as any;
const { cognito } = packages as ProtoGrpcType;
const Health = packages.grpc.health.v1.Health as grpc.ServiceClientConstructor;

/** What to do about a failure: retry, raise (the caller has to know), or alert (somebody has to act) and raise. */
export type Advice = "retry" | "raise" | "alert";

/** Why a user was not signed out, or perhaps not: `outcome` "unknown" means that it may have happened. */
export class SignOutFailed extends Error {
  readonly code: grpc.status;
  readonly reason: string = "";
  readonly metadata: Record<string, string> = {};
  readonly retryAfterMs: number | undefined;
  readonly requestId: string = "";
  readonly fields: string[] = [];

  constructor(error: grpc.ServiceError) {
    super(`${grpc.status[error.code]}: ${error.details}`, { cause: error });
    this.code = error.code;
    const [bytes] = error.metadata.get("grpc-status-details-bin");
    if (!(bytes instanceof Buffer)) return; // it was the gRPC library that failed
    for (const { type_url, value } of decode("google.rpc.Status", bytes).details) {
      switch (type_url) {
        case "type.googleapis.com/google.rpc.ErrorInfo": {
          const info = decode("google.rpc.ErrorInfo", value);
          this.reason = info.reason;
          this.metadata = info.metadata ?? {};
          break;
        }
        case "type.googleapis.com/google.rpc.RetryInfo": {
          const delay = decode("google.rpc.RetryInfo", value).retry_delay;
          this.retryAfterMs = (delay?.seconds ?? 0) * 1000 + Math.ceil((delay?.nanos ?? 0) / 1e6);
          break;
        }
        case "type.googleapis.com/google.rpc.RequestInfo":
          this.requestId = decode("google.rpc.RequestInfo", value).request_id;
          break;
        case "type.googleapis.com/google.rpc.BadRequest":
          this.fields = decode("google.rpc.BadRequest", value).field_violations.map((violation: any) => violation.field);
          break;
      }
    }
  }

  get fault(): string {
    return this.metadata["fault"] ?? "";
  }

  get retryable(): boolean {
    // Without details, only UNAVAILABLE says that another attempt may help.
    return this.reason ? this.metadata["retryable"] === "true" : this.code === grpc.status.UNAVAILABLE;
  }

  get outcome(): string {
    return this.metadata["outcome"] ?? "unknown";
  }

  get does(): Advice {
    // Nobody waits any more; a new call is a new decision.
    if (this.code === grpc.status.DEADLINE_EXCEEDED || this.code === grpc.status.CANCELLED) return "raise";
    if (this.retryable) return "retry";
    return this.fault === "sidecar" || this.fault === "aws" ? "alert" : "raise";
  }
}

/** How to reach the sidecar: files for mTLS; `tokenFile` is read anew for every call, and sent over TLS only. */
export interface Reach {
  ca?: string;
  cert?: string;
  key?: string;
  tokenFile?: string;
  serviceConfig?: string;
}

export interface CallOptions {
  timeoutMs?: number;
  /** W3C trace context. Leave it away where OpenTelemetry's gRPC instrumentation sends it. */
  traceparent?: string;
  waitForReady?: boolean;
  signal?: AbortSignal;
}

/** One for each process: it holds a connection. The address is HOST:PORT, unix:/PATH or another target of grpc-js. */
export class SignOutClient {
  private readonly stub: SignOutServiceClient;
  private readonly health: InstanceType<grpc.ServiceClientConstructor>;

  constructor(address: string, { ca, cert, key, tokenFile, serviceConfig }: Reach = {}) {
    if (tokenFile && !ca) throw new Error("a token is not sent without TLS");
    let credentials = grpc.credentials.createInsecure();
    if (ca) {
      const read = (path?: string) => (path ? readFileSync(path) : null);
      credentials = grpc.credentials.createSsl(read(ca), read(key), read(cert));
    }
    if (tokenFile) {
      const token = grpc.credentials.createFromMetadataGenerator((_, done) => {
        const metadata = new grpc.Metadata();
        metadata.set("authorization", `Bearer ${readFileSync(tokenFile, "utf8").trim()}`);
        done(null, metadata);
      });
      credentials = grpc.credentials.combineChannelCredentials(credentials, token);
    }
    const options = serviceConfig ? { "grpc.service_config": readFileSync(serviceConfig, "utf8") } : {};
    const channel = new grpc.Channel(address, credentials, options);
    this.stub = new cognito.signout.v1.SignOutService(address, credentials, { channelOverride: channel });
    this.health = new Health(address, credentials, { channelOverride: channel });
  }

  /** Tries again as the sidecar advises, within the timeout. Rejects with SignOutFailed. */
  async signOut(userPoolId: string, username: string, options: CallOptions = {}): Promise<Answer> {
    const deadline = performance.now() + (options.timeoutMs ?? 10_000);
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.attempt(userPoolId, username, { ...options, timeoutMs: deadline - performance.now() });
      } catch (error) {
        if (!(error instanceof SignOutFailed)) throw error;
        if (error.does === "alert") {
          console.error("ALERT: sign-outs do not work:", error.reason, error.message, "AWS request id", error.requestId);
        }
        const wait = error.retryAfterMs ?? Math.random() * 100 * 2 ** attempt;
        if (error.does !== "retry" || attempt === MAX_ATTEMPTS || performance.now() + wait >= deadline) throw error;
        await sleep(wait, undefined, { signal: options.signal });
      }
    }
  }

  /** Tries once. */
  attempt(userPoolId: string, username: string, options: CallOptions = {}): Promise<Answer> {
    const metadata = new grpc.Metadata({ waitForReady: options.waitForReady ?? false });
    if (options.traceparent) metadata.set("traceparent", options.traceparent);
    const deadline = Date.now() + (options.timeoutMs ?? 10_000);
    return new Promise((resolve, reject) => {
      const request = { user_pool_id: userPoolId, username };
      const call = this.stub.adminUserGlobalSignOut(request, metadata, { deadline }, (error, answer) =>
        error ? reject(new SignOutFailed(error)) : resolve(answer!),
      );
      options.signal?.addEventListener("abort", () => call.cancel(), { once: true });
    });
  }

  /** SERVING, NOT_SERVING and so on, as they change. */
  async *watchHealth(service = ""): AsyncGenerator<string> {
    for await (const answer of this.health["watch"]!({ service })) yield answer.status;
  }
}

// proto-loader has no types for messages that are looked up by name.
function decode(name: string, bytes: Uint8Array): any {
  return (definition[name] as any).deserialize(Buffer.from(bytes));
}
