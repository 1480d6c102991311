package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"auditsink/config"
	"auditsink/internal/performance"
)

const (
	// reportTimeout is how long the worker's answer is waited for: before its first report it makes one.
	reportTimeout = time.Minute
	// reportBytes bounds the answer.
	reportBytes = 16 << 20
)

// reportFromWorker asks the worker at AUDITSINK_HTTP_ADDR for its performance report, with AUDITSINK_TOKEN where there is one.
func reportFromWorker(ctx context.Context, cfg config.Config) (r performance.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	url := "http://" + reachable(cfg.HTTPAddr) + "/v1/performance"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return r, fmt.Errorf("ask for the performance report: %w", err)
	}
	if token := cfg.Token.Reveal(); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := workerClient.Do(req)
	if err != nil {
		return r, fmt.Errorf("no worker answers at %s: start one, or set AUDITSINK_HTTP_ADDR to a worker's address (%w)", cfg.HTTPAddr, err)
	}
	defer func() { err = errors.Join(err, answer.Body.Close()) }()
	body, err := io.ReadAll(io.LimitReader(answer.Body, reportBytes))
	if err != nil {
		return r, fmt.Errorf("read the performance report from %s: %w", url, err)
	}
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return r, &usageError{fmt.Errorf("the worker at %s refuses us (%s): set AUDITSINK_TOKEN to a token of its AUDITSINK_TOKENS_FILE that may read all organizations", cfg.HTTPAddr, answer.Status)}
	case http.StatusNotFound:
		return r, fmt.Errorf("what answers at %s has no performance report: is it an auditsink worker of this version?", url)
	default:
		said := strings.TrimSpace(string(body[:min(len(body), 500)]))
		return r, fmt.Errorf("the worker at %s has no performance report for us: %s: %s", cfg.HTTPAddr, answer.Status, said)
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return r, fmt.Errorf("read the performance report from %s: %w", url, err)
	}
	return r, nil
}

// printReport prints a report for people, or as JSON.
func printReport(out io.Writer, r performance.Report, asJSON bool) error {
	if asJSON {
		return printJSON(out, r)
	}
	return performance.WriteReport(out, r)
}

// reachable is the address to reach what listens on addr: one that stands for all addresses stands for this machine.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
