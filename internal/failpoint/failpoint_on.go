//go:build failpoints

// Package failpoint marks the moments at which the fault suite kills or stops a worker.
//
// The variable FAILPOINT arms one of them: NAME=kill@N sends the process SIGKILL when the moment comes for the Nth time, and
// NAME=stop@N sends it SIGSTOP.
package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	armed  string
	signal syscall.Signal
	// left counts down to the moment that is meant.
	left atomic.Int64
)

func init() {
	setting := os.Getenv("FAILPOINT")
	if setting == "" {
		return
	}
	if err := arm(setting); err != nil {
		fmt.Fprintln(os.Stderr, "FAILPOINT:", err)
		os.Exit(2)
	}
}

func arm(setting string) error {
	name, rest, _ := strings.Cut(setting, "=")
	action, count, _ := strings.Cut(rest, "@")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		return fmt.Errorf("%q: want NAME=kill@N or NAME=stop@N", setting)
	}
	switch action {
	case "kill":
		signal = syscall.SIGKILL
	case "stop":
		signal = syscall.SIGSTOP
	default:
		return fmt.Errorf("%q: want NAME=kill@N or NAME=stop@N", setting)
	}
	armed = name
	left.Store(n)
	return nil
}

// Hit marks that the moment of the given name has come.
func Hit(name string) {
	if name != armed || left.Add(-1) != 0 {
		return
	}
	if err := syscall.Kill(os.Getpid(), signal); err != nil {
		panic(err)
	}
	// A signal to oneself is on its way when kill returns, yet may reach this thread a moment later.
	for signal == syscall.SIGKILL {
		syscall.Pause() //nolint:errcheck // it ends with the process
	}
	time.Sleep(20 * time.Millisecond) // it is stopped in here
}
