package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/indexes"
	"auditsink/migrations"
	"auditsink/partitions"
)

// The variants are what indexes audit_log has.
const (
	noIndex    = "none" // not even the primary key
	allIndexes = "all"  // the primary key and the profile full
	// The profile lean, and deferred builds, of which only what a partition has while it takes rows counts.
	leanIndexes = "lean"
	hotIndexes  = "deferred"
)

// variantNames lists them.
var variantNames = []string{noIndex, allIndexes, leanIndexes, hotIndexes}

// database is a new one with the schema that the worker finds, made for one measurement.
type database struct {
	url  string
	conn *pgx.Conn
}

// onDatabase makes a database with the indexes of a variant, hands it over, and drops it.
func (b *bench) onDatabase(ctx context.Context, variant string, do func(*database) error) (err error) {
	url, err := b.postgres.CreateDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.postgres.DropDatabase(context.WithoutCancel(ctx), url)) }()
	if _, err := migrations.Apply(ctx, url); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	db := &database{url: url, conn: conn}
	defer func() { err = errors.Join(err, db.conn.Close(context.WithoutCancel(ctx))) }()
	// Before there are partitions, so that theirs get their names from us: deferred builds need some that Postgres would give.
	if err := db.index(ctx, variant); err != nil {
		return err
	}
	if err := ensurePartitions(ctx, url); err != nil {
		return err
	}
	return do(db)
}

func ensurePartitions(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return fmt.Errorf("open a connection pool: %w", err)
	}
	defer pool.Close()
	// The events were made some minutes ago, maybe in another month.
	_, err = partitions.Ensure(ctx, pool, time.Now().Add(-time.Hour), partitions.Schedule{Ahead: 2})
	return err
}

// index gives a table without rows the indexes of a variant.
func (db *database) index(ctx context.Context, variant string) error {
	choice := indexes.Choice{Profile: indexes.Full, Build: indexes.Immediate}
	switch variant {
	case noIndex:
		return db.dropIndexes(ctx)
	case leanIndexes:
		choice.Profile = indexes.Lean
	case hotIndexes:
		choice.Build = indexes.Deferred
	}
	return pgx.BeginFunc(ctx, db.conn, func(tx pgx.Tx) error { return indexes.Choose(ctx, tx, choice) })
}

// dropIndexes drops the primary key and all indexes of audit_log, and with them those of its partitions.
func (db *database) dropIndexes(ctx context.Context) error {
	_, err := db.conn.Exec(ctx, `
		ALTER TABLE audit_log DROP CONSTRAINT audit_log_pkey;
		DO $$
		DECLARE i regclass;
		BEGIN
			FOR i IN SELECT indexrelid FROM pg_index WHERE indrelid = 'audit_log'::regclass LOOP
				EXECUTE 'DROP INDEX ' || i;
			END LOOP;
		END $$`)
	if err != nil {
		return fmt.Errorf("drop the indexes: %w", err)
	}
	return nil
}

// checkpoint spares a measurement the writing of what was there before it.
func (db *database) checkpoint(ctx context.Context) error {
	if _, err := db.conn.Exec(ctx, `CHECKPOINT`); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// storedRecords is how many records the lanes' positions have moved past: topics here begin at 0, and have no control records.
const storedRecords = `SELECT coalesce(sum(next_offset), 0)::bigint FROM audit_lane`

// stored is how many records the lanes' positions have moved past. Reading it costs next to nothing: a row for each lane.
func (db *database) stored(ctx context.Context) (records int64, err error) {
	err = db.conn.QueryRow(ctx, storedRecords).Scan(&records)
	if err != nil {
		return 0, fmt.Errorf("read the positions: %w", err)
	}
	return records, nil
}

// positions are the lanes' next offsets, by lane.
func (db *database) positions(ctx context.Context) (map[int32]int64, error) {
	rows, err := db.conn.Query(ctx, `SELECT lane_id, next_offset FROM audit_lane`)
	if err != nil {
		return nil, fmt.Errorf("read the positions: %w", err)
	}
	at := map[int32]int64{}
	var lane int32
	var next int64
	if _, err = pgx.ForEachRow(rows, []any{&lane, &next}, func() error { at[lane] = next; return nil }); err != nil {
		return nil, fmt.Errorf("read the positions: %w", err)
	}
	return at, nil
}

// reconnect replaces a connection that an outage has broken.
func (db *database) reconnect(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, db.url)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	db.conn.Close(ctx) //nolint:errcheck,gosec // it is broken already
	db.conn = conn
	return nil
}

// verify requires that every event is exactly one row.
func (db *database) verify(ctx context.Context, events int) error {
	var rows, distinct, quarantined int
	err := db.conn.QueryRow(ctx, `
		SELECT count(*), count(DISTINCT lane_id::bigint << 40 | lane_offset), (SELECT count(*) FROM audit_quarantine)
		FROM audit_log`).Scan(&rows, &distinct, &quarantined)
	switch {
	case err != nil:
		return fmt.Errorf("count the rows: %w", err)
	case rows != events || distinct != events || quarantined != 0:
		return fmt.Errorf("of %d events, %d rows were stored for %d different offsets, and %d went to quarantine", events, rows, distinct, quarantined)
	}
	return nil
}
