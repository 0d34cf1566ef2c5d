// Package signout signs users out of Amazon Cognito, everywhere, through the sidecar. One file to copy into a service.
package signout

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // switches on the health checks of the service config
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"example.com/sessions/signout/signoutpb"
)

const maxAttempts = 3

// Advice is what to do about a failure.
type Advice string

const (
	Retry Advice = "retry" // another attempt may help
	Raise Advice = "raise" // the caller has to know
	Alert Advice = "alert" // somebody has to act, and the caller has to know
)

// Failure is why a user was not signed out, or perhaps not: Outcome "unknown" means that it may have happened.
type Failure struct {
	Code       codes.Code
	Reason     string // empty if it was the gRPC library that failed
	Message    string
	Fault      string
	Retryable  bool
	Outcome    string
	AWSCode    string
	RequestID  string
	RetryAfter *time.Duration
	Fields     []string
	cause      error
}

func (f *Failure) Error() string { return fmt.Sprintf("%s %s: %s", f.Code, f.Reason, f.Message) }
func (f *Failure) Unwrap() error { return f.cause }

// Does tells what to do about it.
func (f *Failure) Does() Advice {
	switch {
	case f.Code == codes.DeadlineExceeded || f.Code == codes.Canceled:
		return Raise // nobody waits any more; a new call is a new decision
	case f.Retryable:
		return Retry
	case f.Fault == "sidecar" || f.Fault == "aws":
		return Alert
	}
	return Raise
}

func failure(err error) *Failure {
	st := status.Convert(err)
	f := &Failure{Code: st.Code(), Message: st.Message(), Outcome: "unknown", Retryable: st.Code() == codes.Unavailable, cause: err}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			f.Reason, f.Fault, f.Outcome = d.GetReason(), d.GetMetadata()["fault"], d.GetMetadata()["outcome"]
			f.Retryable, f.AWSCode = d.GetMetadata()["retryable"] == "true", d.GetMetadata()["aws_error_code"]
		case *errdetails.RetryInfo:
			delay := d.GetRetryDelay().AsDuration()
			f.RetryAfter = &delay
		case *errdetails.RequestInfo:
			f.RequestID = d.GetRequestId()
		case *errdetails.BadRequest:
			for _, violation := range d.GetFieldViolations() {
				f.Fields = append(f.Fields, violation.GetField())
			}
		}
	}
	return f
}

// Config says how to reach the sidecar. CA, Cert and Key are files for mTLS; TokenFile is read anew for every call.
type Config struct {
	CA, Cert, Key, TokenFile, ServiceConfig string
}

// Client is safe for concurrent use; one for each process.
type Client struct {
	conn   *grpc.ClientConn
	stub   signoutpb.SignOutServiceClient
	health healthpb.HealthClient
}

// New dials nothing yet. The address is HOST:PORT, unix:/PATH, dns:///NAME:PORT or another target of grpc-go.
func New(address string, config Config, more ...grpc.DialOption) (*Client, error) {
	options := more
	if config.CA == "" {
		if config.TokenFile != "" {
			return nil, errors.New("a token is not sent without TLS")
		}
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	} else {
		transport, err := mutualTLS(config)
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithTransportCredentials(transport))
	}
	if config.TokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenFile(config.TokenFile)))
	}
	if config.ServiceConfig != "" {
		text, err := os.ReadFile(config.ServiceConfig)
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithDefaultServiceConfig(string(text)))
	}
	conn, err := grpc.NewClient(address, options...)
	if err != nil {
		return nil, err
	}
	return &Client{conn, signoutpb.NewSignOutServiceClient(conn), healthpb.NewHealthClient(conn)}, nil
}

func (c *Client) Close() error { return c.conn.Close() }

// SignOut tries again as the sidecar advises, within the deadline of ctx, or 10 s. Its errors are of type *Failure.
func (c *Client) SignOut(ctx context.Context, userPoolID, username string) (*signoutpb.AdminUserGlobalSignOutResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // an earlier deadline of ctx stays
	defer cancel()
	deadline, _ := ctx.Deadline()
	for attempt := 1; ; attempt++ {
		response, err := c.Attempt(ctx, userPoolID, username)
		if err == nil {
			return response, nil
		}
		var f *Failure
		errors.As(err, &f)
		if f.Does() == Alert {
			slog.ErrorContext(ctx, "sign-outs do not work", "error", f, "fault", f.Fault, "aws_request_id", f.RequestID)
		}
		wait := rand.N(100 * time.Millisecond << attempt)
		if f.RetryAfter != nil {
			wait = *f.RetryAfter
		}
		if f.Does() != Retry || attempt == maxAttempts || time.Now().Add(wait).After(deadline) {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, failure(status.FromContextError(ctx.Err()).Err())
		}
	}
}

// Attempt tries once. Its errors are of type *Failure.
func (c *Client) Attempt(ctx context.Context, userPoolID, username string, options ...grpc.CallOption) (*signoutpb.AdminUserGlobalSignOutResponse, error) {
	request := &signoutpb.AdminUserGlobalSignOutRequest{UserPoolId: userPoolID, Username: username}
	response, err := c.stub.AdminUserGlobalSignOut(ctx, request, options...)
	if err != nil {
		return nil, failure(err)
	}
	return response, nil
}

// WithTrace sends W3C trace context with the calls of ctx. Leave it away where OpenTelemetry's stats handler does it.
func WithTrace(ctx context.Context, traceparent string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "traceparent", traceparent)
}

// WatchHealth tells SERVING, NOT_SERVING and so on, as they change, until ctx ends.
func (c *Client) WatchHealth(ctx context.Context, service string) (grpc.ServerStreamingClient[healthpb.HealthCheckResponse], error) {
	return c.health.Watch(ctx, &healthpb.HealthCheckRequest{Service: service})
}

func mutualTLS(config Config) (credentials.TransportCredentials, error) {
	pem, err := os.ReadFile(config.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", config.CA)
	}
	return credentials.NewTLS(&tls.Config{
		RootCAs: roots,
		// Read for every handshake, so that a replaced file is used from the next connection on.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(config.Cert, config.Key)
			return &pair, err
		},
	}), nil
}

type tokenFile string

func (t tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(t))
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, err
}

func (tokenFile) RequireTransportSecurity() bool { return true }
