// Package probe measures sign-outs: PROGRAM ADDRESS STARTED CALLS.
package probe

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Run prints what signing a user out took. `connect` is given the address.
func Run(connect func(string) func() error) {
	started, err := strconv.ParseFloat(os.Args[2], 64)
	check(err)
	calls, err := strconv.Atoi(os.Args[3])
	check(err)
	signOut := connect(os.Args[1])
	check(signOut())
	first := float64(time.Now().UnixMicro())/1e6 - started
	for range 100 {
		check(signOut())
	}
	before := usage()
	took := make([]time.Duration, calls)
	for i := range took {
		began := time.Now()
		check(signOut())
		took[i] = time.Since(began)
	}
	after := usage()
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	slices.Sort(took)
	check(json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"first_ms": first * 1e3,
		"cpu_us":   float64(cpu) / float64(calls) / 1e3,
		"p50_us":   float64(took[calls/2].Nanoseconds()) / 1e3,
		"rss_mb":   float64(after.Maxrss) / 1024,
	}))
}

func usage() (usage syscall.Rusage) {
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return usage
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
