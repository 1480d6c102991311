package performance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/postgres"
)

// partLimits hold for the reading of each part: whoever locks a partition, or makes the server slow, costs the report that part and no more.
const partLimits = `SET LOCAL statement_timeout = '5s'; SET LOCAL lock_timeout = '1s'; SET LOCAL idle_in_transaction_session_timeout = '5s'`

// partTimeout is the same with the wait for a connection and an answer.
const partTimeout = 10 * time.Second

// lookTimeout bounds all parts together.
const lookTimeout = 30 * time.Second

// counters are what the database has counted by one moment. A part is nil where it could not be read.
type counters struct {
	version     int // as server_version_num
	name        string
	statements  *statementCounts
	indexes     *indexCounts
	tables      *tableCounts
	wal         *walCounts
	checkpoints *checkpointCounts
	activity    *activityCounts
	partitions  *Partitions
	settings    *serverSettings
	done        []Optimization
	unread      []Unread
}

// counted is when a part was read, and from when the database has counted what it holds.
type counted struct {
	at    time.Time // by this process's clock
	reset time.Time // by the database's; zero: not known
}

// since is the moment from which the difference to an earlier look counts, and whether there is one to take it from: not after somebody reset the
// statistics, or a crash did.
func (c counted) since(earlier *counted) (time.Time, bool) {
	if earlier == nil || !earlier.reset.Equal(c.reset) {
		return c.reset, false
	}
	return earlier.at.UTC(), true
}

// countedOf is a part's, nil of none. T is a part.
func countedOf[T interface{ when() counted }](part *T) *counted {
	if part == nil {
		return nil
	}
	when := (*part).when()
	return &when
}

func (c counted) when() counted { return c }

// added is how much a counter has grown. One that is lower than before was reset meanwhile, and has counted since.
func added[N int64 | float64](now, before N) N {
	if now < before {
		return now
	}
	return now - before
}

// readPart runs do in a read-only transaction that ends soon.
func readPart(ctx context.Context, db *pgxpool.Pool, do func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	return pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, partLimits); err != nil {
			return err
		}
		return do(ctx, tx)
	})
}

// count reads all parts, as of now by this process's clock. before is the last look, nil for none: it tells which statements' texts are wanted.
func count(ctx context.Context, db *pgxpool.Pool, now func() time.Time, before *counters, slow time.Duration) *counters {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	c := &counters{}
	err := readPart(ctx, db, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version')`).Scan(&c.version, &c.name)
	})
	if err != nil { // then the others can't either, and each would take its time to find out
		c.unread = []Unread{{Part: "database", Why: why(err)}}
		return c
	}
	if before == nil {
		before = &counters{}
	}
	for _, part := range []struct {
		name string
		read func(context.Context, pgx.Tx) error
	}{
		{"statements", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.statements, err = countStatements(ctx, tx, now(), before.statements, slow)
			return err
		}},
		{"indexes", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.indexes, err = countIndexes(ctx, tx, now())
			return err
		}},
		{"tables", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.tables, err = countTables(ctx, tx, now())
			return err
		}},
		{"wal", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.wal, err = countWAL(ctx, tx, now())
			return err
		}},
		{"checkpoints", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.checkpoints, err = countCheckpoints(ctx, tx, now(), c.version)
			return err
		}},
		{"activity", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.activity, err = countActivity(ctx, tx, now())
			return err
		}},
		{"partitions", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.partitions, err = readPartitions(ctx, tx, now())
			return err
		}},
		{"settings", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.settings, err = readSettings(ctx, tx)
			return err
		}},
		{"optimizations", func(ctx context.Context, tx pgx.Tx) (err error) {
			c.done, err = readOptimizations(ctx, tx)
			return err
		}},
	} {
		if err := readPart(ctx, db, part.read); err != nil {
			c.unread = append(c.unread, Unread{Part: part.name, Why: why(err)})
		}
	}
	return c
}

// errWithout is why a part can't be read on this server: what it says is for people.
type errWithout struct{ error }

func why(err error) string {
	var without errWithout
	if errors.As(err, &without) {
		return without.Error()
	}
	return postgres.Explain(err).Error()
}

// inherit keeps the parts of an earlier look that could not be read now, so that the next look has something to take a difference from.
func (c *counters) inherit(before *counters) *counters {
	if before == nil {
		return c
	}
	all := *c
	if all.statements == nil {
		all.statements = before.statements
	}
	if all.indexes == nil {
		all.indexes = before.indexes
	}
	if all.tables == nil {
		all.tables = before.tables
	}
	if all.wal == nil {
		all.wal = before.wal
	}
	if all.checkpoints == nil {
		all.checkpoints = before.checkpoints
	}
	if all.activity == nil {
		all.activity = before.activity
	}
	return &all
}

// database is the report's part, from one look to another.
func (c *counters) database(before *counters) Database {
	if before == nil {
		before = &counters{}
	}
	d := Database{Version: c.name, Partitions: c.partitions, Unread: append([]Unread{}, c.unread...)}
	if c.statements != nil {
		d.Statements = c.statements.report
	}
	if c.indexes != nil {
		d.Indexes = c.indexes.since(before.indexes, c.tables, before.tables)
	}
	if c.tables != nil {
		d.Tables = c.tables.since(before.tables)
	}
	if c.wal != nil {
		d.WAL = c.wal.since(before.wal)
	}
	if c.checkpoints != nil {
		d.Checkpoints = c.checkpoints.since(before.checkpoints)
	}
	if c.activity != nil {
		d.Activity = c.activity.since(before.activity)
	}
	return d
}

// rowsOf collects what a query of a part gives.
func rowsOf[T any](ctx context.Context, tx pgx.Tx, what string, read func(pgx.CollectableRow) (T, error), sql string, args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err == nil {
		var all []T
		if all, err = pgx.CollectRows(rows, read); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read %s: %w", what, err)
}

// utc turns null into the zero time.
func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
