package partitions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/failpoint"
)

const (
	// detachWait bounds how long a DETACH CONCURRENTLY waits for those who used audit_log when it began. All that time events of the range find
	// no partition, and no other detach can begin.
	detachWait = 10 * time.Second
	// detachAge is how long a transaction may have lasted that uses audit_log. An older one probably goes on for longer than detachWait.
	detachAge = 10 * time.Second
	// detachPause is between two looks at transactions whose age can't be seen.
	detachPause = time.Second
)

// detach detaches a partition. It isn't begun, and false returned, while somebody who holds a lock on it or on audit_log won't be done soon.
func (r *round) detach(ctx context.Context, w way) (begun bool, err error) {
	ways, err := look(ctx, r.db)
	if err != nil {
		return false, err
	}
	for _, other := range ways {
		if other.Default {
			return false, fmt.Errorf("nothing can be detached without stopping ingest: %w", &DefaultPartitionError{Name: other.Name})
		}
	}
	since, hidden, err := oldest(ctx, r.db, w)
	if err != nil {
		return false, err
	}
	if len(hidden) > 0 {
		if !sleep(ctx, detachPause) {
			return false, context.Cause(ctx)
		}
		_, still, err := oldest(ctx, r.db, w)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(hidden, func(one string) bool { return slices.Contains(still, one) }) {
			r.wait(w.Name, errors.New("a transaction of another role uses audit_log and a detach would wait for it; how old it is can't be seen: GRANT pg_read_all_stats to the role of the maintenance"))
			return false, nil
		}
	}
	if since >= detachAge {
		r.wait(w.Name, fmt.Errorf("a transaction that uses audit_log has lasted for %s, and a detach would wait for it", since.Round(time.Second)))
		return false, nil
	}
	if err := r.term.check(ctx, r.db); err != nil {
		return false, err
	}
	failpoint.Hit("retire.detach.before")
	err = detachConcurrently(ctx, r.db, w)
	failpoint.Hit("retire.detach.after")
	return true, errors.Join(err, r.term.check(ctx, r.db))
}

// oldest is the age of the oldest transaction that holds a lock on audit_log or on the partition. Prepared ones have no session, and last for long. Those of other roles
// have an age only for who may read all statistics; for others they are hidden, and named instead.
func oldest(ctx context.Context, db querier, w way) (age time.Duration, hidden []string, err error) {
	rows, err := db.Query(ctx, `
		SELECT coalesce(max(CASE WHEN l.pid IS NULL THEN 1e6 ELSE extract(epoch FROM clock_timestamp() - a.xact_start) END), 0)::float8,
			coalesce(array_agg(DISTINCT l.virtualtransaction) FILTER (WHERE a.pid IS NOT NULL AND a.xact_start IS NULL), '{}')
		FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		  AND l.relation IN ('audit_log'::regclass, $1::bigint::oid) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()`, int64(w.oid))
	if err != nil {
		return 0, nil, fmt.Errorf("look for old transactions: %w", err)
	}
	var seconds float64
	_, err = pgx.ForEachRow(rows, []any{&seconds, &hidden}, func() error { return nil })
	if err != nil {
		return 0, nil, fmt.Errorf("look for old transactions: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), hidden, nil
}

// detachConcurrently sends DETACH between the settings that bound it and those that undo them. It can't run in a transaction, where SET LOCAL would do.
// All are sent in one go: a pooler in transaction mode gives a session to another only when it has answered all that it was sent.
func detachConcurrently(ctx context.Context, db *pgxpool.Pool, w way) error {
	conn, err := db.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("take a connection: %w", err)
	}
	defer conn.Release()
	pipeline := conn.Conn().PgConn().StartPipeline(ctx)
	for _, sql := range []string{
		fmt.Sprintf(`SET lock_timeout = %d`, detachWait.Milliseconds()),
		fmt.Sprintf(`SET statement_timeout = %d`, 3*detachWait.Milliseconds()),
		`ALTER TABLE audit_log DETACH PARTITION ` + w.table + ` CONCURRENTLY`,
		`RESET lock_timeout`,
		`RESET statement_timeout`,
	} {
		pipeline.SendQueryParams(sql, nil, nil, nil, nil)
		pipeline.SendPipelineSync()
	}
	if err := pipeline.Flush(); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	var failed error
	for {
		results, err := pipeline.GetResults()
		if results == nil && err == nil {
			break
		}
		if reader, ok := results.(*pgconn.ResultReader); ok {
			_, err = reader.Close()
		}
		var pg *pgconn.PgError
		if err != nil && failed == nil {
			failed = err
		}
		if err != nil && !errors.As(err, &pg) {
			break // the connection is lost
		}
	}
	if err := errors.Join(failed, pipeline.Close()); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// finalize finishes a detach that was interrupted, whoever began it: until then its range takes no rows, and nothing else can be detached. While the
// one who began it still waits, it holds a lock that we don't get.
func (r *round) finalize(ctx context.Context, w way, why string) error {
	err := transact(ctx, r.db, func(tx pgx.Tx) error {
		if err := finalizeIn(ctx, tx, w, &r.term.Number, why); err != nil {
			return err
		}
		if err := r.term.confirm(ctx, tx); err != nil {
			return err
		}
		failpoint.Hit("retire.finalize.before-commit")
		return nil
	})
	if err != nil {
		return err
	}
	r.did(w.Name, "finalized", 0, why)
	failpoint.Hit("retire.finalize.after-commit")
	return nil
}

// finalizeIn finishes a pending detach. What isn't on its way out by our record is somebody's own doing: it is put on record, and left to them.
func finalizeIn(ctx context.Context, tx pgx.Tx, w way, term *int64, why string) error {
	if err := alone(ctx, tx); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `ALTER TABLE audit_log DETACH PARTITION `+w.table+` FINALIZE`); err != nil {
		return err
	}
	if w.open() || w.state == "restored" || w.state == "refused" {
		return nil
	}
	return note(ctx, tx, "detach", w, term, 0, map[string]any{"why": why + "; it wasn't auditsink's"})
}
