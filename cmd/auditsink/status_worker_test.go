package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/config"
	"auditsink/internal/event"
	"auditsink/metrics"
)

// TestAskWorker: its rates are of what happened between two looks, whatever it has counted before, and all of it is as the worker tells.
func TestAskWorker(t *testing.T) {
	const before, each = 1e12, 100 // so far apart that no time between two looks makes them alike
	m := metrics.New("v1.2.3", event.Reasons())
	m.RowsInserted.Add(before)
	m.RecordsConsumed.Add(before)
	m.LanesOwned.Set(2)
	m.SetLag("events", 1, 5, 0)
	m.AlertActive.WithLabelValues("lane_halted").Set(1)
	m.Report("kafka", metrics.Component{Status: metrics.Critical})
	var broken atomic.Pointer[string]
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, r *http.Request) {
		m.RowsInserted.Add(each)
		m.Handler().ServeHTTP(w, r)
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "lane events/0: gone", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(m.Health())
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		if path := broken.Load(); path != nil && *path == r.URL.Path {
			http.Error(w, "<html>", http.StatusTeapot)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	defer server.Close()
	cfg := config.Default()
	cfg.HTTPAddr, cfg.Token = strings.TrimPrefix(server.URL, "http://"), "secret"
	r := &statusReader{cfg: cfg}
	for range 2 {
		f, err := r.askWorker(t.Context())
		require.NoError(t, err)
		require.Positive(t, f.RowsPerSecond)
		require.Less(t, f.RowsPerSecond, before/100.0, "of what was stored before nothing")
		require.Zero(t, f.RecordsPerSecond)
		require.Equal(t, []any{cfg.HTTPAddr, "v1.2.3", false, "lane events/0: gone", 2, int64(5), []string{"lane_halted"}, metrics.Critical},
			[]any{f.Instance, f.Version, f.Ready, f.NotReady, f.LanesOwned, f.LagRecords, f.Alerts, f.Health})
		require.Equal(t, map[string]metrics.Status{"kafka": metrics.Critical}, f.Components)
		require.False(t, f.Started.IsZero())
	}
	for _, path := range []string{"/metrics", "/health"} {
		broken.Store(&path)
		_, err := r.askWorker(t.Context())
		require.Error(t, err, path)
	}
	broken.Store(nil)
	cfg.Token = ""
	_, err := (&statusReader{cfg: cfg}).askWorker(t.Context())
	require.ErrorContains(t, err, "/metrics answers 401")
	_, err = r.askWorker(t.Context())
	require.NoError(t, err, "it is asked again")
}
