package query

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/postgres"
)

// ErrTimeout means that the database took longer than a read may take.
var ErrTimeout = errors.New("the database took longer than a query may take (AUDITSINK_QUERY_TIMEOUT)")

// begin opens a transaction that reads. Its settings are local to it, so that they hold behind a pooler in transaction mode too. Plans are made for the values asked for: one for
// any values couldn't prune table partitions while it is made, nor tell rare values from frequent ones. A table is never read whole where an index can do, even if statistics
// are missing; reads take no further cores from ingest, and no time to compile.
const begin = `BEGIN READ ONLY; SET LOCAL statement_timeout = %[1]d; SET LOCAL lock_timeout = %[1]d; SET LOCAL idle_in_transaction_session_timeout = '10s';
	SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off; SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off`

// session is what a named query has of the database: a connection once it needs one, with a transaction that is renewed after [manyPartitions] statements. It belongs to one
// goroutine.
type session struct {
	reading
	r    *Reader
	conn *pgxpool.Conn // nil: none
	done int           // statements of its transaction
}

// read runs a statement and calls each for each row. Where the connection got lost it begins anew with another, calling restart before: reading twice changes nothing. ctx is
// that of [Reader.watched].
func (s *session) read(ctx context.Context, statement statement, restart func(), each func(pgx.Rows) error) error {
	o := &s.r.o
	for attempt := 1; ; attempt++ {
		restart()
		err := s.attempt(ctx, statement, each)
		if err == nil {
			return nil
		}
		s.end(ctx)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case tooLong(err):
			return fmt.Errorf("%w: %w", ErrTimeout, err)
		case !lost(err) || attempt >= o.RetryAttempts:
			return err
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= o.RetryDelay {
			return err // the next attempt would begin too late
		}
		select {
		case <-time.After(o.RetryDelay):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

func (s *session) attempt(ctx context.Context, statement statement, each func(pgx.Rows) error) error {
	if s.done == manyPartitions {
		s.end(ctx)
	}
	if s.conn == nil {
		begun := time.Now()
		conn, err := s.r.pool.Acquire(ctx)
		waited := time.Since(begun)
		s.acquire += waited
		s.r.o.Metrics.QueryAcquireSeconds.Observe(waited.Seconds())
		if err != nil {
			return err
		}
		s.conn, s.done = conn, 0
		if _, err := conn.Exec(ctx, fmt.Sprintf(begin, serverTimeout(ctx).Milliseconds()), pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("begin to read: %w", err)
		}
	}
	s.done++
	begun := time.Now()
	defer func() { s.note(statement, time.Since(begun)) }()
	rows, err := s.conn.Query(ctx, statement.text, statement.args...)
	if err == nil {
		for rows.Next() {
			if err = each(rows); err != nil {
				break
			}
		}
		rows.Close()
		err = errors.Join(err, rows.Err())
	}
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("read audit_log: %w", err)
	}
	return nil
}

// end gives the connection back. One whose transaction can't be ended is closed by Release.
func (s *session) end(ctx context.Context) {
	if s.conn == nil {
		return
	}
	s.conn.Exec(ctx, `ROLLBACK`, pgx.QueryExecModeSimpleProtocol) //nolint:errcheck,gosec // nothing is lost
	s.conn.Release()
	s.conn = nil
}

// errEnough ends a read whose further rows aren't wanted.
var errEnough = errors.New("enough")

// serverTimeout is how long the server may take for the statement: a little less than we wait, so that it is the server that gives up, and the connection remains.
func serverTimeout(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0 // none
	}
	left := time.Until(deadline)
	return max(left-min(left/10, 100*time.Millisecond), time.Millisecond)
}

// tooLong tells that the server ended the statement by its timeout, or by that for locks.
func tooLong(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "57014" || pg.Code == "55P03")
}

// lost tells that another attempt may find a server that answers: the connection broke or wasn't made, the server stops, starts or is full, or it cancelled the read
// for the sake of its recovery.
func lost(err error) bool {
	if errors.Is(err, postgres.ErrAcquireTimeout) {
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return postgres.Classify(err) == postgres.Transient
	}
	switch pg.Code {
	case "57P01", "57P02", "57P03", "53300", "40001", "40P01":
		return true
	}
	return pg.Code[:min(2, len(pg.Code))] == "08"
}
