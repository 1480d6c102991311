// Package postgres opens connection pools from the settings, says to which class an error of the
// server belongs, and explains to an operator what the server refused.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Options says how to open a [Pool].
type Options struct {
	// URL is a connection URL or a key=value string.
	URL string
	// Application names the sessions on the server where URL doesn't; empty for auditsink.
	Application string
	// SSLMode replaces the sslmode of URL where it isn't empty.
	SSLMode string
	// Prepared lets the client keep prepared statements on its connections. It is off behind a pooler
	// in transaction mode, which may hand the next statement to another session.
	Prepared bool
	// MinConns are kept open, and at most MaxConns are.
	MinConns, MaxConns int32
	// IdleTimeout closes what was idle for that long, above MinConns.
	IdleTimeout time.Duration
	// AcquireTimeout bounds the wait for a free connection; 0 leaves it to the caller's context.
	AcquireTimeout time.Duration
	// Acquired is told how many seconds each acquire took, successful or not; nil for nobody.
	Acquired func(seconds float64)
}

// ErrAcquireTimeout is wrapped by [Pool.Acquire] where all connections are taken and none came free in time.
var ErrAcquireTimeout = errors.New("no connection came free within the acquire timeout")

// Pool is a pgxpool.Pool whose Acquire is bounded in time. It is safe for concurrent use.
type Pool struct {
	*pgxpool.Pool
	acquireTimeout time.Duration
	acquired       func(seconds float64)
}

// Open makes the pool without waiting for the server: see [Wait].
func Open(ctx context.Context, o Options) (*Pool, error) {
	cfg, err := parse(o)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open a connection pool: %w", err)
	}
	return &Pool{Pool: pool, acquireTimeout: o.AcquireTimeout, acquired: o.Acquired}, nil
}

func parse(o Options) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(WithSSLMode(o.URL, o.SSLMode))
	if err != nil {
		return nil, fmt.Errorf("read the connection URL (AUDITSINK_POSTGRES_URL): %w", err)
	}
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = cmp.Or(o.Application, "auditsink")
	}
	// Without prepared statements times come as text, of which pgx reads no other style. Poolers know the parameter.
	cfg.ConnConfig.RuntimeParams["datestyle"] = "ISO, YMD"
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	// A server that is gone without a word is noticed in seconds.
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	cfg.ConnConfig.DialFunc = dialer.DialContext
	if !o.Prepared {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	if o.MaxConns > 0 {
		cfg.MaxConns = o.MaxConns
	}
	cfg.MinConns = o.MinConns
	if o.IdleTimeout > 0 {
		cfg.MaxConnIdleTime = o.IdleTimeout
		// The pool looks at idle connections once a period: a timeout is kept to within a quarter.
		cfg.HealthCheckPeriod = max(o.IdleTimeout/4, 100*time.Millisecond)
	}
	return cfg, nil
}

// WithSSLMode returns a connection URL or key=value string with its sslmode replaced, unless mode is empty. The rest stays as it
// is, to the letter: pgx, like libpq, doesn't read a query as package net/url writes it.
func WithSSLMode(conn, mode string) string {
	if mode == "" {
		return conn
	}
	separator := " "
	if strings.HasPrefix(conn, "postgres://") || strings.HasPrefix(conn, "postgresql://") {
		separator = "?"
		if strings.Contains(conn, "?") {
			separator = "&"
		}
	}
	return conn + separator + "sslmode=" + mode // the last of a name holds
}

// Acquire takes a connection out of the pool, waiting for at most the acquire timeout.
func (p *Pool) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	begin := time.Now()
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if p.acquireTimeout > 0 {
		bounded, cancel = context.WithTimeoutCause(ctx, p.acquireTimeout, ErrAcquireTimeout)
	}
	defer cancel()
	conn, err := p.Pool.Acquire(bounded)
	if p.acquired != nil {
		p.acquired(time.Since(begin).Seconds())
	}
	if err == nil {
		return conn, nil
	}
	if ctx.Err() == nil && errors.Is(context.Cause(bounded), ErrAcquireTimeout) {
		if p.Stat().AcquiredConns() < p.Stat().MaxConns() { // not busy: a new one was not made in time
			return nil, fmt.Errorf("connect to the database within the acquire timeout (%s): %w", p.acquireTimeout, err)
		}
		return nil, fmt.Errorf("%w (%s): %w", ErrAcquireTimeout, p.acquireTimeout, err)
	}
	return nil, fmt.Errorf("take a database connection: %w", err)
}

// Wait returns once the server answers a query. While an error is transient it calls waiting and tries again after
// delay: attempts times, or without end where attempts is 0. Any other error it returns at once.
func (p *Pool) Wait(ctx context.Context, attempts int, delay time.Duration, waiting func(error)) error {
	for n := 1; ; n++ {
		err := p.ping(ctx)
		if err == nil || Classify(err) != Transient || n == attempts {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		waiting(err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *Pool) ping(ctx context.Context) error {
	conn, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if err := conn.Ping(ctx); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	return nil
}

// Writable returns an error of SQLSTATE 25006 where the server takes no writes.
func (p *Pool) Writable(ctx context.Context) error {
	conn, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	readOnly := ""
	if err := conn.QueryRow(ctx, `SELECT current_setting('transaction_read_only')`).Scan(&readOnly); err != nil {
		return fmt.Errorf("ask whether the database takes writes: %w", err)
	}
	if readOnly == "on" {
		return &pgconn.PgError{Severity: "ERROR", Code: "25006", Message: "transaction_read_only is on"}
	}
	return nil
}
