package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// worker is an auditsink process.
type worker struct{ *process }

// startWorker runs `auditsink run` with nothing but env as its environment. When ctx ends it is told to stop.
func startWorker(ctx context.Context, binary, logPath string, env []string) (*worker, error) {
	cmd := exec.CommandContext(ctx, binary, "run")
	cmd.Env = env
	p, err := startProcess("the worker", cmd, logPath)
	if err != nil {
		return nil, err
	}
	return &worker{p}, nil
}

// watch notes how the worker gets on, until it has stored so many records.
func (w *worker) watch(ctx context.Context, db *database, records int64) ([]point, error) {
	var progress []point
	err := w.follow(ctx, db.stored, records, func(p point) error {
		progress = append(progress, p)
		return nil
	})
	return progress, err
}

// address waits until the worker answers HTTP and returns its base URL, which is in its log.
func (w *worker) address(ctx context.Context) (string, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		log, err := os.ReadFile(w.log)
		if err != nil {
			return "", fmt.Errorf("read the worker's log: %w", err)
		}
		for line := range bytes.Lines(log) {
			var entry struct{ Metrics string }
			if json.Unmarshal(line, &entry) == nil && entry.Metrics != "" {
				return strings.TrimSuffix(entry.Metrics, "/metrics"), nil
			}
		}
		if err := w.wait(ctx, tick.C); err != nil {
			return "", err
		}
	}
}

// awaitReady waits until the worker says that it takes in events, and returns its base URL.
func (w *worker) awaitReady(ctx context.Context) (string, error) {
	address, err := w.address(ctx)
	if err != nil {
		return "", err
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if status, err := get(ctx, address+"/readyz"); err == nil && status == http.StatusOK {
			return address, nil
		}
		if err := w.wait(ctx, tick.C); err != nil {
			return "", err
		}
	}
}

// get asks for a page and returns the status of the answer.
func get(ctx context.Context, url string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, fmt.Errorf("ask for %s: %w", url, err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("ask for %s: %w", url, err)
	}
	return answer.StatusCode, answer.Body.Close()
}
