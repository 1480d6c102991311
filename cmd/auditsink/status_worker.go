package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"auditsink/internal/fleet"
	"auditsink/metrics"
)

const (
	// mostAnswer bounds what is read of a worker's answer.
	mostAnswer = 16 << 20
	// ratesOver is the time between the two looks at a worker that its rates are of.
	ratesOver = time.Second
)

// workerClient asks a worker: not by way of a proxy, since the address is this machine's, or a worker's.
var workerClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// workerLook is the last look at the worker's metrics; its At is zero before the first.
type workerLook struct{ before metrics.Sample }

// readWorker asks the worker at AUDITSINK_HTTP_ADDR how it is.
func (r *statusReader) readWorker(ctx context.Context, s *status) {
	ctx, cancel := context.WithTimeout(ctx, workerWithin)
	defer cancel()
	f, err := r.askWorker(ctx)
	if err != nil {
		s.Replicas.Error = fmt.Sprintf("ask the worker at %s (AUDITSINK_HTTP_ADDR): %v", reachable(r.cfg.HTTPAddr), err)
		return
	}
	s.Replicas.Source, s.Replicas.Items = fromWorker, []fleet.Figures{f}
}

func (r *statusReader) askWorker(ctx context.Context) (fleet.Figures, error) {
	f := fleet.Figures{Format: 1, Instance: reachable(r.cfg.HTTPAddr), Group: r.cfg.KafkaGroup, HTTPAddr: reachable(r.cfg.HTTPAddr), Lanes: []fleet.Lane{}}
	before := r.worker.before
	if before.At.IsZero() {
		var err error
		if before, err = r.scrape(ctx); err != nil {
			return f, err
		}
		select {
		case <-ctx.Done():
			return f, context.Cause(ctx)
		case <-time.After(ratesOver):
		}
	}
	sample, err := r.scrape(ctx)
	if err != nil {
		r.worker.before = metrics.Sample{}
		return f, err
	}
	r.worker.before = sample
	f.Measure(before, sample)
	f.Started = time.Unix(int64(sample.Process("process_start_time_seconds")), 0).UTC()
	for v := range sample.By("build_info", "version") {
		f.Version = v
	}
	code, why, err := r.ask(ctx, "/readyz")
	if err != nil {
		return f, err
	}
	if f.Ready = code == http.StatusOK; !f.Ready {
		f.NotReady = strings.TrimSpace(string(why))
	}
	_, text, err := r.ask(ctx, "/health")
	if err != nil {
		return f, err
	}
	var health metrics.Health
	if err := json.Unmarshal(text, &health); err != nil {
		return f, fmt.Errorf("read its health: %w", err)
	}
	f.Judge(health)
	return f, nil
}

func (r *statusReader) scrape(ctx context.Context) (metrics.Sample, error) {
	code, text, err := r.ask(ctx, "/metrics")
	switch {
	case err != nil:
		return metrics.Sample{}, err
	case code != http.StatusOK:
		return metrics.Sample{}, fmt.Errorf("/metrics answers %d", code)
	}
	s, err := metrics.ReadSample(strings.NewReader(string(text)), time.Now())
	if err == nil && s.Sum("build_info") == 0 {
		return s, errors.New("what answers is no worker of auditsink")
	}
	return s, err
}

// ask gets a page of the worker.
func (r *statusReader) ask(ctx context.Context, path string) (code int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reachable(r.cfg.HTTPAddr)+path, nil)
	if err != nil {
		return 0, nil, err
	}
	if token := r.cfg.Token.Reveal(); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := workerClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	body, err = io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	return resp.StatusCode, body, err
}
