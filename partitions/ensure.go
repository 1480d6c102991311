package partitions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// lockID is "audit_lg" as a number, the advisory lock of whoever creates partitions. The SQL function
// create_audit_log_partitions() takes it too.
const lockID = 0x61756469745f6c67

const (
	// lockTimeout bounds one try's wait for another creator, or for what holds a lock on audit_log that ATTACH conflicts
	// with (ANALYZE, CREATE INDEX; not readers and writers).
	lockTimeout = "2s"
	// patience bounds all tries together; it outlasts the ANALYZE of a large partition. Then the caller hears of it.
	patience = 2 * time.Minute
)

// limits hold for a transaction that creates a partition. A process that is frozen in it would keep the lock, and everybody else from creating
// any, for as long as it is frozen; so the server ends its session. LOCAL makes them work through a pooler too.
const limits = `SET LOCAL lock_timeout = '` + lockTimeout + `';
	SET LOCAL idle_in_transaction_session_timeout = '5s';
	SET LOCAL tcp_keepalives_idle = 5; SET LOCAL tcp_keepalives_interval = 2; SET LOCAL tcp_keepalives_count = 3`

// Ensure creates the missing partitions that a schedule wants, in UTC, and returns what it
// created. Ingest goes on meanwhile. Any number of processes may call it at once. Where something holds a lock it needs,
// it tries again for two minutes.
//
// It creates what it can: see [Plan] for the errors about the rest. The steps returned were committed, whatever the error.
func Ensure(ctx context.Context, db *pgxpool.Pool, now time.Time, schedule Schedule) ([]Step, error) {
	return create(ctx, db, "ahead of time", func(c Catalog) ([]Step, error) { return Plan(now, c, schedule) })
}

// EnsureFor creates the missing partitions of the UTC days of the given times, history by the month (see [Plan]), and of the current interval, like
// [Ensure]. Times before the month of now−horizon or more than [Future] after now are refused with a [*RangeError], after
// the partitions for the others were created. A partition on its way out that was detached, but not dropped, is attached again.
func EnsureFor(ctx context.Context, db *pgxpool.Pool, now time.Time, horizon time.Duration, schedule Schedule, times []time.Time) ([]Step, error) {
	allowed, refusal := allow(now, horizon, times)
	if len(allowed) == 0 {
		return nil, refusal
	}
	back, failed := bringBackFor(ctx, db, allowed)
	schedule.Ahead = 0
	steps, err := create(ctx, db, "on demand", func(c Catalog) ([]Step, error) { return Plan(now, c, schedule, allowed...) })
	return append(back, steps...), errors.Join(failed, err, refusal)
}

// create carries out a plan, one transaction a step, planning anew each time from what the catalog says by then.
func create(ctx context.Context, db *pgxpool.Pool, why string, plan func(Catalog) ([]Step, error)) ([]Step, error) {
	// Nearly always nothing is missing; then no lock is taken and nothing written (a standby will do).
	catalog, err := read(ctx, db)
	if err != nil {
		return nil, err
	}
	steps, err := plan(catalog)
	if len(steps) == 0 {
		return nil, err
	}
	var done []Step
	for {
		step, err := backoff.Retry(ctx, func() (*Step, error) {
			step, err := createNext(ctx, db, why, plan)
			if err != nil && !passing(err) {
				return step, backoff.Permanent(err)
			}
			return step, err
		}, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxElapsedTime(patience))
		if step != nil {
			done = append(done, *step)
		}
		if step == nil || err != nil {
			return done, err
		}
	}
}

// createNext creates the first partition that is missing. It returns nil and the plan's error when nothing is.
func createNext(ctx context.Context, db *pgxpool.Pool, why string, plan func(Catalog) ([]Step, error)) (*Step, error) {
	var next *Step
	var unplanned error
	// Read committed: the catalog must be read as it is once the lock is ours.
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, limits); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(lockID)); err != nil {
			return err
		}
		catalog, err := read(ctx, tx)
		if err != nil {
			return err
		}
		var steps []Step
		if steps, unplanned = plan(catalog); len(steps) == 0 {
			return nil
		}
		next = &steps[0]
		_, err = tx.Exec(ctx, `SELECT create_audit_log_partition($1, $2, $3, $4)`, next.Name, next.From, next.To, why)
		return err
	})
	switch {
	case err != nil && next != nil:
		return nil, fmt.Errorf("%s: %w", next, err)
	case err != nil:
		return nil, fmt.Errorf("look for missing partitions: %w", err)
	case next == nil:
		return nil, unplanned
	default:
		return next, nil
	}
}

// passing tells whether an error is gone when the plan is made and tried again: a lock not to be had (lock_not_available,
// deadlock_detected), or a partition made by somebody who doesn't take our lock (duplicate_table, unique_violation of the
// catalog's, invalid_object_definition for overlapping bounds).
func passing(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "55P03", "40P01", "42P07", "23505", "42P17":
		return true
	default:
		return false
	}
}
