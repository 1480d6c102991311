package performance

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// walCounts is pg_stat_wal.
type walCounts struct {
	counted
	WAL
}

func countWAL(ctx context.Context, tx pgx.Tx, now time.Time) (*walCounts, error) {
	c := &walCounts{counted: counted{at: now}}
	var reset *time.Time
	err := tx.QueryRow(ctx, `SELECT wal_bytes::bigint, wal_records, wal_fpi, wal_buffers_full, stats_reset FROM pg_stat_wal`).
		Scan(&c.Bytes, &c.Records, &c.FullPageImages, &c.BuffersFull, &reset)
	if err != nil {
		return nil, fmt.Errorf("read pg_stat_wal: %w", err)
	}
	c.reset = utc(reset)
	return c, nil
}

func (c *walCounts) since(before *walCounts) *WAL {
	var was WAL
	since, ok := c.counted.since(countedOf(before))
	if ok {
		was = before.WAL
	}
	w := &WAL{
		Since: since, Bytes: added(c.Bytes, was.Bytes), Records: added(c.Records, was.Records),
		FullPageImages: added(c.FullPageImages, was.FullPageImages), BuffersFull: added(c.BuffersFull, was.BuffersFull),
	}
	if !since.IsZero() {
		w.BytesPerSecond = perSecond(float64(w.Bytes), c.at.Sub(since))
	}
	return w
}

// checkpointCounts is pg_stat_checkpointer, which until Postgres 16 was part of pg_stat_bgwriter.
type checkpointCounts struct {
	counted
	Checkpoints
}

func countCheckpoints(ctx context.Context, tx pgx.Tx, now time.Time, version int) (*checkpointCounts, error) {
	sql := `SELECT num_timed, num_requested, write_time / 1000, sync_time / 1000, buffers_written, stats_reset FROM pg_stat_checkpointer`
	if version < 170000 {
		sql = `SELECT checkpoints_timed, checkpoints_req, checkpoint_write_time / 1000, checkpoint_sync_time / 1000, buffers_checkpoint, stats_reset FROM pg_stat_bgwriter`
	}
	c := &checkpointCounts{counted: counted{at: now}}
	var reset *time.Time
	if err := tx.QueryRow(ctx, sql).Scan(&c.Timed, &c.Requested, &c.WriteSeconds, &c.SyncSeconds, &c.BuffersWritten, &reset); err != nil {
		return nil, fmt.Errorf("read the statistics of checkpoints: %w", err)
	}
	c.reset = utc(reset)
	return c, nil
}

func (c *checkpointCounts) since(before *checkpointCounts) *Checkpoints {
	var was Checkpoints
	since, ok := c.counted.since(countedOf(before))
	if ok {
		was = before.Checkpoints
	}
	return &Checkpoints{
		Since: since, Timed: added(c.Timed, was.Timed), Requested: added(c.Requested, was.Requested), BuffersWritten: added(c.BuffersWritten, was.BuffersWritten),
		WriteSeconds: added(c.WriteSeconds, was.WriteSeconds), SyncSeconds: added(c.SyncSeconds, was.SyncSeconds),
	}
}

// activityCounts is pg_stat_database, and who is connected.
type activityCounts struct {
	counted
	Activity
}

func countActivity(ctx context.Context, tx pgx.Tx, now time.Time) (*activityCounts, error) {
	c := &activityCounts{counted: counted{at: now}}
	var reset *time.Time
	// Who may not see others' sessions sees no backend_type of theirs either.
	err := tx.QueryRow(ctx, `
		SELECT d.xact_commit, d.xact_rollback, d.temp_files, d.temp_bytes, d.deadlocks, pg_database_size(d.datid), coalesce(d.stats_reset, w.stats_reset),
		       a.clients, a.others
		FROM pg_stat_database d, pg_stat_wal w, (
			SELECT count(*) AS clients, count(*) FILTER (WHERE coalesce(application_name, '') NOT LIKE 'auditsink%') AS others
			FROM pg_stat_activity WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend') a
		WHERE d.datname = current_database()`).
		Scan(&c.Commits, &c.Rollbacks, &c.TempFiles, &c.TempBytes, &c.Deadlocks, &c.Bytes, &reset, &c.Connections, &c.Others)
	if err != nil {
		return nil, fmt.Errorf("read what goes on in the database: %w", err)
	}
	c.reset = utc(reset)
	return c, nil
}

func (c *activityCounts) since(before *activityCounts) *Activity {
	var was Activity
	since, ok := c.counted.since(countedOf(before))
	if ok {
		was = before.Activity
	}
	return &Activity{
		Since: since, Connections: c.Connections, Others: c.Others, Bytes: c.Bytes,
		Commits: added(c.Commits, was.Commits), Rollbacks: added(c.Rollbacks, was.Rollbacks), Deadlocks: added(c.Deadlocks, was.Deadlocks),
		TempFiles: added(c.TempFiles, was.TempFiles), TempBytes: added(c.TempBytes, was.TempBytes),
	}
}
