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
	"sync"
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
	// Waiting is told by how much the number of those who wait for a connection has changed; nil for nobody.
	Waiting func(by int)
	// Failed is told of each acquire that got no connection, unless it was given up by its caller; nil for nobody.
	Failed func()
}

// ErrAcquireTimeout is wrapped by [Pool.Acquire] where all connections are taken and none came free in time.
var ErrAcquireTimeout = errors.New("no connection came free within the acquire timeout")

// Pool is a pgxpool.Pool whose Acquire is bounded in time. It is safe for concurrent use.
type Pool struct {
	*pgxpool.Pool
	o    Options
	uses uses
}

// State is how a pool is.
type State struct {
	// Total counts the connections, of which Active are in use, Idle are not, and the rest are being made; Max is how many there may be.
	Total, Active, Idle, Max int32
	// Waiting is how many wait for a connection.
	Waiting int
	// Acquires and Failures count since the start: those who asked for a connection, and those of them who got none.
	Acquires, Failures uint64
	// MeanAcquire is for how long the last of them waited, on average: each counts a fiftieth of it.
	MeanAcquire time.Duration
}

// uses is what acquires have told.
type uses struct {
	mu                 sync.Mutex // guards what follows
	waiting            int
	acquires, failures uint64
	mean               float64 // seconds
}

// meanOver is over how many acquires the rolling average goes.
const meanOver = 50

func (u *uses) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting++
}

func (u *uses) end(seconds float64, failed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting--
	u.acquires++
	if failed {
		u.failures++
	}
	u.mean += (seconds - u.mean) / float64(min(u.acquires, meanOver))
}

// State is how the pool is now.
func (p *Pool) State() State {
	stat := p.Stat()
	p.uses.mu.Lock()
	defer p.uses.mu.Unlock()
	return State{
		Total: stat.TotalConns(), Active: stat.AcquiredConns(), Idle: stat.IdleConns(), Max: stat.MaxConns(),
		Waiting: p.uses.waiting, Acquires: p.uses.acquires, Failures: p.uses.failures,
		MeanAcquire: time.Duration(p.uses.mean * float64(time.Second)),
	}
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
	o.URL = "" // it holds a password, and is needed no more
	return &Pool{Pool: pool, o: o}, nil
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
	if p.o.AcquireTimeout > 0 {
		bounded, cancel = context.WithTimeoutCause(ctx, p.o.AcquireTimeout, ErrAcquireTimeout)
	}
	defer cancel()
	p.begin()
	conn, err := p.Pool.Acquire(bounded)
	p.end(time.Since(begin).Seconds(), err != nil && !errors.Is(ctx.Err(), context.Canceled))
	if err == nil {
		return conn, nil
	}
	if ctx.Err() == nil && errors.Is(context.Cause(bounded), ErrAcquireTimeout) {
		if p.Stat().AcquiredConns() < p.Stat().MaxConns() { // not busy: a new one was not made in time
			return nil, fmt.Errorf("connect to the database within the acquire timeout (%s): %w", p.o.AcquireTimeout, err)
		}
		return nil, fmt.Errorf("%w (%s): %w", ErrAcquireTimeout, p.o.AcquireTimeout, err)
	}
	return nil, fmt.Errorf("take a database connection: %w", err)
}

func (p *Pool) begin() {
	p.uses.begin()
	if p.o.Waiting != nil {
		p.o.Waiting(1)
	}
}

func (p *Pool) end(seconds float64, failed bool) {
	p.uses.end(seconds, failed)
	if p.o.Waiting != nil {
		p.o.Waiting(-1)
	}
	if p.o.Acquired != nil {
		p.o.Acquired(seconds)
	}
	if failed && p.o.Failed != nil {
		p.o.Failed()
	}
}

// Check asks the server for a 1, within a deadline that the wait for a connection is part of.
func (p *Pool) Check(ctx context.Context, deadline time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	conn, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	one := 0
	if err := conn.QueryRow(ctx, `SELECT 1`).Scan(&one); err != nil {
		return fmt.Errorf("ask the database for a 1: %w", err)
	}
	return nil
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
