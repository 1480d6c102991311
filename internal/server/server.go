// Package server answers HTTP: metrics, liveness, readiness, health, and /v1: reads of events, the performance report, the level of the log.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"auditsink/internal/query"
	"auditsink/metrics"
)

// Server is the worker's HTTP endpoint.
type Server struct {
	http     *http.Server
	listener net.Listener
	tokens   *Tokens
}

// Options is what the server shows, and to whom.
type Options struct {
	// Addr is host:port to listen on; port 0 chooses one.
	Addr string
	// Scrape serves the metrics.
	Scrape http.Handler
	// Ready returns nil while the worker can take in events, else the reason why not.
	Ready func() error
	// Health is asked how the whole system is.
	Health func() metrics.Health

	// Reader reads what is asked of /v1/events; nil answers 503.
	Reader *query.Reader
	// Exports is how many exports may be under way at once, 1 at least; more are answered 503.
	Exports int
	// Tokens tells who may use /v1; nil answers everything to this machine alone.
	Tokens *Tokens
	// Report makes what /v1/performance shows; nil answers 404.
	Report func(context.Context) (any, error)
	// Level is the level of the log, shown and changed at /v1/log-level; nil answers 404.
	Level *zap.AtomicLevel
	// Log is told of what fails, and of who exports or changes something; nil for nobody.
	Log *zap.Logger
}

// Listen takes the address at once, so that one in use is an error at start and not later.
func Listen(ctx context.Context, o Options) (*Server, error) { return listen(ctx, o, stall) }

func listen(ctx context.Context, o Options, stall time.Duration) (*Server, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for HTTP (AUDITSINK_HTTP_ADDR): %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", o.Scrape)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, o.Ready()) })
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { answerHealth(w, o.Health()) })
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	(&api{Options: o, exports: make(chan struct{}, max(o.Exports, 1))}).register(mux)
	return &Server{
		listener: listener,
		tokens:   o.Tokens,
		http:     &http.Server{Handler: timed(mux, stall, o.Log), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute},
	}, nil
}

// answer says ok, or 503 and why.
func answer(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	body := "ok\n"
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		body = err.Error() + "\n"
	}
	//nolint:errcheck,gosec // whoever asked has gone: nobody is left to tell
	w.Write([]byte(body))
}

// answerHealth says in JSON how things are, with 503 where somebody has to act at once. What only needs attention is no reason for an orchestrator or a
// load balancer to take the worker out of service.
func answerHealth(w http.ResponseWriter, h metrics.Health) {
	body, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		answer(w, fmt.Errorf("write the health as JSON: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if h.Status == metrics.Critical {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	//nolint:errcheck,gosec // whoever asked has gone: nobody is left to tell
	w.Write(append(body, '\n'))
}

// Addr is the address listened on, with the port that was chosen where 0 was asked for.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Serve answers until ctx ends, then gives what is under way a moment to finish.
func (s *Server) Serve(ctx context.Context) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		err := s.http.Shutdown(grace)
		if errors.Is(err, context.DeadlineExceeded) { // whoever still reads is cut off: no failure of ours
			err = s.http.Close()
		}
		stopped <- err
	})
	defer stop()
	if s.tokens != nil {
		watching, end := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { s.tokens.Watch(watching) })
		defer watch.Wait()
		defer end()
	}
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return <-stopped
}
