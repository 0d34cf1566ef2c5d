// Signs users out of Amazon Cognito, everywhere, through the sidecar. Copy this file and sign_out.cpp into a service.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "cognito/signout/v1/sign_out.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"

enum class Advice {
    retry,  // another attempt may help
    raise,  // the caller has to know
    alert,  // somebody has to act, and the caller has to know
};

/// Why a user was not signed out, or perhaps not: outcome "unknown" means that it may have happened.
class SignOutFailed : public std::runtime_error {
public:
    explicit SignOutFailed(const grpc::Status& status);

    grpc::StatusCode code;
    std::string reason;  // empty if it was the gRPC library that failed
    std::map<std::string, std::string> metadata;
    std::optional<std::chrono::nanoseconds> retry_after;
    std::string request_id;
    std::vector<std::string> fields;

    std::string fault() const;
    std::string outcome() const;
    bool retryable() const;
    Advice does() const;

private:
    std::string known(const std::string& key, const std::string& otherwise) const;
};

/// One for each process, used by any number of threads: it holds a connection.
class SignOutClient {
public:
    using Answer = cognito::signout::v1::AdminUserGlobalSignOutResponse;
    using Health = grpc::health::v1::HealthCheckResponse;

    /// How to reach the sidecar. `ca`, `cert` and `key` are files for mTLS; `token_file` is read anew for every call.
    struct Reach {
        std::string address;  // HOST:PORT, unix:/PATH, dns:///NAME:PORT or ipv4:HOST:PORT,HOST:PORT
        std::string ca = {}, cert = {}, key = {}, token_file = {}, service_config = {};
    };

    /// Connects with the first call, and again whenever it has to.
    explicit SignOutClient(const Reach& reach);

    /// Tries again as the sidecar advises, within the timeout. `traceparent` is W3C trace context. Throws SignOutFailed.
    Answer sign_out(const std::string& user_pool_id, const std::string& username,
                    std::chrono::milliseconds timeout = std::chrono::seconds(10), const std::string& traceparent = "");

    /// Tries once, with the deadline of `context`; its TryCancel(), on another thread, cancels the call.
    Answer attempt(grpc::ClientContext& context, const std::string& user_pool_id, const std::string& username);

    /// The status at once, then whenever it changes: each Read() waits, until `context` is cancelled or the sidecar ends.
    std::unique_ptr<grpc::ClientReader<Health>> watch_health(grpc::ClientContext& context, const std::string& service = "");

private:
    std::unique_ptr<cognito::signout::v1::SignOutService::Stub> stub_;
    std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};
