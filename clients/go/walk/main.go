// Walks the table of cases: walk CASES TARGETS. Speaks with clients/run by lines on standard input and output.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"example.com/sessions/signout"
	"example.com/sessions/signout/signoutpb"
)

type table struct {
	Defaults json.RawMessage
	Cases    []struct {
		Name  string
		In    []string
		Steps []json.RawMessage
	}
}

type step struct {
	Do, What, Over, Pool, User, Service, Status, Traceparent string

	DeadlineMS   int    `json:"deadline_ms"`
	AtLeastMS    int    `json:"at_least_ms"`
	AtMostMS     int    `json:"at_most_ms"`
	AnsweredBy   string `json:"answered_by"`
	WaitForReady bool   `json:"wait_for_ready"`
	Times        int
	Fresh        bool
	Expect       map[string]string
}

type target struct {
	Addresses     []string
	CA, Cert, Key string
	TokenFile     string `json:"token_file"`
	ServiceConfig string `json:"service_config"`
}

// Clients outlive a case, because a connection that survives is what some cases are about.
var (
	clients = map[string]*signout.Client{}
	targets map[string]target
	stdin   = bufio.NewReader(os.Stdin)
)

type walk struct {
	cancel context.CancelFunc
	answer chan map[string]string
	watch  grpc.ServerStreamingClient[healthpb.HealthCheckResponse]
}

func main() {
	var table table
	read(os.Args[1], &table)
	read(os.Args[2], &targets)
	for _, c := range table.Cases {
		if c.In != nil && !slices.Contains(c.In, "go") {
			continue
		}
		if err := run(c.Name, c.Steps, table.Defaults); err != nil {
			fmt.Println("fail", c.Name, "::", strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println("pass", c.Name)
		}
	}
}

func run(name string, steps []json.RawMessage, defaults json.RawMessage) error {
	if err := ask("begin " + name); err != nil {
		return err
	}
	walk := &walk{}
	for _, raw := range steps {
		var step step
		if err := errors.Join(json.Unmarshal(defaults, &step), json.Unmarshal(raw, &step)); err != nil {
			return err
		}
		if err := walk.do(step); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) do(step step) error {
	if step.Do == "ask" {
		return ask(step.What)
	}
	client, err := dial(step)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(step.DeadlineMS)*time.Millisecond)
	if step.Traceparent != "" {
		ctx = signout.WithTrace(ctx, step.Traceparent)
	}
	switch step.Do {
	case "call", "sign_out":
		defer cancel()
		began := time.Now()
		actual := seen(attempt(ctx, client, step))
		took := int(time.Since(began).Milliseconds())
		if took < step.AtLeastMS || step.AtMostMS != 0 && took > step.AtMostMS {
			return fmt.Errorf("it took %d ms", took)
		}
		return check(step, actual)
	case "start":
		w.cancel = cancel
		w.answer = make(chan map[string]string, 1)
		var options []grpc.CallOption
		if step.WaitForReady { // else the service config decides
			options = append(options, grpc.WaitForReady(true))
		}
		go func() { w.answer <- seen(client.Attempt(ctx, step.Pool, step.User, options...)) }()
		return nil
	case "cancel":
		cancel()
		w.cancel()
		return check(step, <-w.answer)
	case "finish":
		cancel()
		return check(step, <-w.answer)
	case "watch":
		cancel()
		w.watch, err = client.WatchHealth(context.Background(), step.Service)
		return err
	case "seen":
		cancel()
		answer, err := w.watch.Recv()
		if err != nil || answer.GetStatus().String() != step.Status {
			return fmt.Errorf("health is %v (%v), not %s", answer.GetStatus(), err, step.Status)
		}
		return nil
	case "ended":
		cancel()
		for {
			answer, err := w.watch.Recv()
			if err != nil {
				return nil
			}
			if answer.GetStatus().String() != step.Status {
				return fmt.Errorf("the watch went on with %v", answer.GetStatus())
			}
		}
	case "gather":
		cancel()
		return gather(client, step)
	}
	cancel()
	return fmt.Errorf("no such step: %s", step.Do)
}

func attempt(ctx context.Context, client *signout.Client, step step) (*signoutpb.AdminUserGlobalSignOutResponse, error) {
	if step.Do == "sign_out" {
		return client.SignOut(ctx, step.Pool, step.User)
	}
	return client.Attempt(ctx, step.Pool, step.User)
}

func gather(client *signout.Client, step step) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		var by []string
		for range step.Times {
			answer, err := client.Attempt(ctx, step.Pool, step.User)
			if err != nil {
				return fmt.Errorf("%w (answered by %v)", err, by)
			}
			if !slices.Contains(by, answer.GetAwsRequestId()) {
				by = append(by, answer.GetAwsRequestId())
			}
		}
		slices.Sort(by)
		if strings.Join(by, ",") == step.AnsweredBy {
			return nil
		}
	}
}

func dial(step step) (*signout.Client, error) {
	if client, ok := clients[step.Over]; ok && !step.Fresh {
		return client, nil
	}
	t := targets[step.Over]
	address := t.Addresses[0]
	var options []grpc.DialOption
	if len(t.Addresses) > 1 { // in production a name of DNS with several addresses
		list := manual.NewBuilderWithScheme("list")
		var state resolver.State
		for _, address := range t.Addresses {
			state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
		}
		list.InitialState(state)
		address = "list:///localhost" // the last part is the HTTP/2 authority
		options = append(options, grpc.WithResolvers(list))
	}
	config := signout.Config{CA: t.CA, Cert: t.Cert, Key: t.Key, TokenFile: t.TokenFile, ServiceConfig: t.ServiceConfig}
	client, err := signout.New(address, config, options...)
	if err == nil {
		clients[step.Over] = client
	}
	return client, err
}

// seen is what the table compares, as text.
func seen(response *signoutpb.AdminUserGlobalSignOutResponse, err error) map[string]string {
	var f *signout.Failure
	if !errors.As(err, &f) {
		return map[string]string{
			"code":          "OK",
			"request_id":    fmt.Sprint(response.GetAwsRequestId() != ""),
			"signed_out_at": fmt.Sprint(response.GetSignedOutAt() != nil),
		}
	}
	return map[string]string{
		"code":           name(f.Code),
		"reason":         f.Reason,
		"fault":          f.Fault,
		"retryable":      fmt.Sprint(f.Retryable),
		"outcome":        f.Outcome,
		"aws_error_code": f.AWSCode,
		"retry_after":    fmt.Sprint(f.RetryAfter != nil),
		"request_id":     fmt.Sprint(f.RequestID != ""),
		"fields":         strings.Join(f.Fields, ","),
		"does":           string(f.Does()),
	}
}

// name writes a code as every other language does.
func name(code codes.Code) string {
	var text strings.Builder
	for i, letter := range code.String() {
		if i > 0 && letter >= 'A' && letter <= 'Z' {
			text.WriteByte('_')
		}
		text.WriteRune(letter)
	}
	return strings.Replace(strings.ToUpper(text.String()), "CANCELED", "CANCELLED", 1)
}

func check(step step, actual map[string]string) error {
	var wrong []error
	for key, value := range step.Expect {
		if actual[key] != value {
			wrong = append(wrong, fmt.Errorf("%s is %q, not %q", key, actual[key], value))
		}
	}
	return errors.Join(wrong...)
}

func ask(what string) error {
	fmt.Println("ask", what)
	reply, err := stdin.ReadString('\n')
	if err == io.EOF || strings.TrimSpace(reply) != "done" {
		return fmt.Errorf("%s: %s", what, strings.TrimSpace(reply))
	}
	return err
}

func read(path string, into any) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
