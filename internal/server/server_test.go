package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/server"
	"auditsink/metrics"
)

// get asks for a page and returns status and body.
func get(t *testing.T, s *server.Server, method, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Addr()+path, nil)
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, errors.Join(err, resp.Body.Close()))
	return resp.StatusCode, string(body)
}

// serve runs a server until the test ends, and then requires that it stopped well.
func serve(t *testing.T, scrape http.Handler, ready func() error, health func() metrics.Health) *server.Server {
	t.Helper()
	s, err := server.Listen(t.Context(), server.Options{Addr: "127.0.0.1:0", Scrape: scrape, Ready: ready, Health: health})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return s
}

func TestLivenessAndReadiness(t *testing.T) {
	reason := errors.New("lane events/3: waits for Postgres")
	scrape := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.WriteString(w, "the metrics\n")
		require.NoError(t, err)
	})
	s := serve(t, scrape, func() error { return reason }, healthy)
	for _, c := range []struct {
		path, body string
		status     int
	}{
		{"/healthz", "ok\n", 200},
		{"/readyz", "lane events/3: waits for Postgres\n", 503},
		{"/metrics", "the metrics\n", 200},
		{"/", "404 page not found\n", 404},
		{"/healthz/more", "404 page not found\n", 404},
	} {
		status, body := get(t, s, http.MethodGet, c.path)
		require.Equal(t, c.status, status, c.path)
		require.Equal(t, c.body, body, c.path)
	}
	status, _ := get(t, s, http.MethodPost, "/healthz")
	require.Equal(t, http.StatusMethodNotAllowed, status)
	status, _ = get(t, s, http.MethodHead, "/readyz")
	require.Equal(t, http.StatusServiceUnavailable, status)

	reason = nil
	status, body := get(t, s, http.MethodGet, "/readyz")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "ok\n", body)
}

func healthy() metrics.Health { return metrics.Health{Status: metrics.Healthy} }

// TestHealth: what was reported, in JSON; 503 only where it is critical.
func TestHealth(t *testing.T) {
	m := metrics.New("v1", []fmt.Stringer{})
	s := serve(t, m.Handler(), func() error { return nil }, m.Health)
	for _, c := range []struct {
		report    metrics.Component
		httpCode  int
		wantsJSON string
	}{
		{
			metrics.Component{Status: metrics.Healthy, Details: map[string]any{"partitions": 7}},
			200,
			`{"status": "healthy", "components": {"partitions": {"status": "healthy", "details": {"partitions": 7}}}, "recommendations": []}`,
		},
		{
			metrics.Component{Status: metrics.Warning, Recommendations: []string{"a: b"}},
			200,
			`{"status": "warning", "components": {"partitions": {"status": "warning", "details": null}}, "recommendations": ["a: b"]}`,
		},
		{
			metrics.Component{Status: metrics.Critical, Recommendations: []string{"c", "d"}},
			503,
			`{"status": "critical", "components": {"partitions": {"status": "critical", "details": null}}, "recommendations": ["c", "d"]}`,
		},
	} {
		m.Report("partitions", c.report)
		code, body := get(t, s, http.MethodGet, "/health")
		require.Equal(t, c.httpCode, code, c.report.Status)
		require.JSONEq(t, c.wantsJSON, body)
	}
	code, _ := get(t, s, http.MethodPost, "/health")
	require.Equal(t, http.StatusMethodNotAllowed, code)
}

func TestAddressInUse(t *testing.T) {
	s := serve(t, http.NotFoundHandler(), func() error { return nil }, healthy)
	_, err := server.Listen(t.Context(), server.Options{Addr: s.Addr(), Scrape: http.NotFoundHandler(), Ready: func() error { return nil }, Health: healthy})
	require.ErrorContains(t, err, "AUDITSINK_HTTP_ADDR")
	require.ErrorContains(t, err, s.Addr())
	require.ErrorContains(t, err, "in use")
}

// TestServeStops: with the context, after what is under way has been answered, and not before.
func TestServeStops(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-answer
		_, err := io.WriteString(w, "late")
		require.NoError(t, err)
	})
	s, err := server.Listen(t.Context(), server.Options{Addr: "127.0.0.1:0", Scrape: slow, Ready: func() error { return nil }, Health: healthy})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	body := make(chan string, 1)
	go func() {
		_, text := get(t, s, http.MethodGet, "/metrics")
		body <- text
	}()
	<-asked
	cancel()
	// The listener goes first.
	for {
		again, err := server.Listen(t.Context(), server.Options{Addr: s.Addr(), Scrape: slow, Ready: func() error { return nil }, Health: healthy})
		if err == nil {
			stop, end := context.WithCancel(t.Context())
			end()
			require.NoError(t, again.Serve(stop))
			break
		}
	}
	select {
	case err := <-done:
		t.Fatalf("ended with a request under way: %v", err)
	default:
	}
	close(answer)
	require.Equal(t, "late", <-body)
	require.NoError(t, <-done)
}

// TestServeStopsInTheEnd: whoever never finishes reading doesn't keep the worker.
func TestServeStopsInTheEnd(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	stuck := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-answer
	})
	s, err := server.Listen(t.Context(), server.Options{Addr: "127.0.0.1:0", Scrape: stuck, Ready: func() error { return nil }, Health: healthy})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	asking, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Addr())
	require.NoError(t, err)
	defer asking.Close() //nolint:errcheck // it was cut off
	_, err = io.WriteString(asking, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	<-asked
	cancel()
	select {
	case err = <-done:
	case <-time.After(time.Minute):
		t.Fatal("it never ends")
	}
	close(answer)
	// A scrape that was cut off is no failure of the worker.
	require.NoError(t, err)
}
