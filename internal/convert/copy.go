package convert

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
)

// monthName is the name of a month's partition.
const monthName = "audit_log_2006_01"

// month is one that is being copied.
type month struct {
	lower, upper time.Time
	name         string // without the schema
	loaded       bool
	lastAt       time.Time // the last row copied
	lastID       int64
}

func (m month) relation() string { return "audit_convert." + quote(m.name) }

func (c *conversion) at(m month) Progress {
	return Progress{Stage: "copying", Month: m.lower.Format("2006-01"), Done: c.done, Total: c.total}
}

// copyMonths copies all months, oldest first, of the rows that were there when changes began to be noted. A month's table is filled without indexes, vacuumed,
// indexed, and attached with its indexes.
func (c *conversion) copyMonths(ctx context.Context) error {
	if err := c.conn.QueryRow(ctx, `SELECT coalesce(sum(copied), 0)::bigint FROM audit_convert.convert_month`).Scan(&c.done); err != nil {
		return fmt.Errorf("read how much is copied: %w", err)
	}
	if c.stage != copying {
		return nil
	}
	if err := c.copyIntegrity(ctx); err != nil {
		return err
	}
	if err := c.copyAside(ctx); err != nil {
		return fmt.Errorf("set rows aside: %w", err)
	}
	for {
		m, err := c.nextMonth(ctx)
		if err != nil {
			return fmt.Errorf("look for the next month: %w", err)
		}
		if m == nil {
			break
		}
		if err := c.copyMonth(ctx, m); err != nil {
			return fmt.Errorf("copy %s: %w", m.lower.Format("2006-01"), err)
		}
	}
	if _, err := c.conn.Exec(ctx, `UPDATE audit_convert.convert_state SET stage = $1`, copied); err != nil {
		return fmt.Errorf("note that all is copied: %w", err)
	}
	c.stage = copied
	return nil
}

// copyAside sets aside what no partition is made for. The limits are those of the moment when changes began to be noted, as for the months.
func (c *conversion) copyAside(ctx context.Context) error {
	return pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		var done bool
		if err := tx.QueryRow(ctx, `SELECT aside_done FROM audit_convert.convert_state`).Scan(&done); err != nil || done {
			return err
		}
		tag, err := tx.Exec(ctx, fmt.Sprintf(`INSERT INTO audit_convert.audit_log_set_aside (%s, why) SELECT %s, '%s' FROM %s
			WHERE id <= $1::bigint AND ("timestamp" < %s OR "timestamp" >= %s)`, c.log.names(), c.log.values(), whyAside, c.log.relation, c.log.instant("$2"), c.log.instant("$3")),
			c.cap, epoch, c.upto)
		if err != nil {
			return err
		}
		if tag.RowsAffected() > 0 && !c.setAside {
			return &Refusal{[]string{fmt.Sprintf("%d rows have timestamps before 1970 or more than 48 hours ahead: run the command again with --set-aside", tag.RowsAffected())}}
		}
		_, err = tx.Exec(ctx, `UPDATE audit_convert.convert_state SET aside_done = true`)
		return err
	})
}

const whyAside = "timestamp outside the range for which partitions are made"

// nextMonth returns the month that is not finished, or begins the next that has rows; nil if there is none.
func (c *conversion) nextMonth(ctx context.Context) (*month, error) {
	var m month
	err := c.conn.QueryRow(ctx, `SELECT lower, upper, name, loaded, last_timestamp, last_id FROM audit_convert.convert_month WHERE NOT attached`).
		Scan(&m.lower, &m.upper, &m.name, &m.loaded, &m.lastAt, &m.lastID)
	if err == nil || !errors.Is(err, pgx.ErrNoRows) {
		m.lower, m.upper = m.lower.UTC(), m.upper.UTC()
		return &m, err
	}
	var first *time.Time
	err = c.conn.QueryRow(ctx, fmt.Sprintf(`SELECT min("timestamp")::timestamptz FROM %s WHERE "timestamp" < %s
		AND "timestamp" >= (SELECT %s FROM (SELECT coalesce(max(upper), '%s') AS done FROM audit_convert.convert_month) months)`,
		c.log.relation, c.log.instant("$1"), c.log.instant("done"), epoch), c.upto).Scan(&first)
	if err != nil || first == nil {
		return nil, err
	}
	m.lower = time.Date(first.UTC().Year(), first.UTC().Month(), 1, 0, 0, 0, 0, time.UTC)
	m.upper, m.name = m.lower.AddDate(0, 1, 0), m.lower.Format(monthName)
	m.lastAt, m.lastID = m.lower, math.MinInt64
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		// As every partition is made; then without what would be kept up row by row.
		_, err := tx.Exec(ctx, `SELECT audit_convert.create_audit_log_partition($1, $2, $3, 'migrate convert')`, m.name, m.lower, m.upper)
		if err == nil {
			_, err = tx.Exec(ctx, `ALTER TABLE audit_convert.audit_log DETACH PARTITION `+m.relation())
		}
		if err == nil {
			err = statements(ctx, tx, `SELECT CASE WHEN k.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass) ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, k.conname) END
				FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid WHERE i.indrelid = $1::text::regclass`, m.relation())
		}
		if err == nil {
			_, err = tx.Exec(ctx, `INSERT INTO audit_convert.convert_month (lower, upper, name, last_timestamp, last_id) VALUES ($1, $2, $3, $4, $5)`, m.lower, m.upper, m.name, m.lastAt, m.lastID)
		}
		return err
	})
	hit("month")
	return &m, err
}

func (c *conversion) copyMonth(ctx context.Context, m *month) error {
	c.Report(c.at(*m))
	for !m.loaded {
		if err := c.copyBatch(ctx, m); err != nil {
			return err
		}
		c.Report(c.at(*m))
		hit("batch")
		if c.Pause > 0 && !m.loaded {
			if err := sleep(ctx, c.Pause); err != nil {
				return err
			}
		}
	}
	hit("loaded")
	// Frozen now, before there are indexes, none of its pages has to be written again.
	if _, err := c.conn.Exec(ctx, `VACUUM (FREEZE, ANALYZE) `+m.relation()); err != nil {
		return fmt.Errorf("vacuum: %w", err)
	}
	hit("vacuumed")
	err := pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		// Indexes like the parent's are adopted by ATTACH, and have the names that create_audit_log_partition() gives.
		err := statements(ctx, tx, `
			SELECT CASE WHEN k.oid IS NULL THEN regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX .* ON ONLY \S+ USING ',
			                'CREATE \1INDEX ' || quote_ident($2::text || substr(c.relname, length('audit_log') + 1)) || ' ON ' || $1::text || ' USING ')
			            ELSE format('ALTER TABLE %s ADD %s', $1::text, pg_get_constraintdef(k.oid)) END
			FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
			WHERE i.indrelid = 'audit_convert.audit_log'::regclass ORDER BY i.indexrelid`, m.relation(), m.name)
		if err != nil {
			return fmt.Errorf("index: %w", err)
		}
		_, err = tx.Exec(ctx, fmt.Sprintf(`ALTER TABLE audit_convert.audit_log ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')`, m.relation(),
			m.lower.Format(time.RFC3339), m.upper.Format(time.RFC3339)))
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		_, err = tx.Exec(ctx, `UPDATE audit_convert.convert_month SET attached = true WHERE lower = $1`, m.lower)
		return err
	})
	hit("attached")
	return err
}

// copyBatch copies the next rows of a month and notes how far it is, in one transaction.
func (c *conversion) copyBatch(ctx context.Context, m *month) error {
	return pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		// The rows are to be read in the order of the index, whatever the statistics say: each batch reads its own rows and no others.
		if _, err := tx.Exec(ctx, `SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off`); err != nil {
			return err
		}
		var n int64
		err := tx.QueryRow(ctx, fmt.Sprintf(`
			WITH page AS (
				INSERT INTO %s (%s) SELECT %s FROM %s o
				WHERE (o."timestamp", o.id) > (%s, $2::bigint) AND o."timestamp" < least(%s, %s) AND o.id <= $5::bigint
				ORDER BY o."timestamp", o.id LIMIT $6 RETURNING "timestamp", id)
			SELECT count(*) OVER (), "timestamp", id FROM page ORDER BY "timestamp" DESC, id DESC LIMIT 1`,
			m.relation(), c.log.names(), c.log.values(), c.log.relation, c.log.instant("$1"), c.log.instant("$3"), c.log.instant("$4")),
			m.lastAt, m.lastID, m.upper, c.upto, c.cap, c.Batch).Scan(&n, &m.lastAt, &m.lastID)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		m.loaded = n < int64(c.Batch)
		c.done += n
		_, err = tx.Exec(ctx, `UPDATE audit_convert.convert_month SET copied = copied + $2, last_timestamp = $3, last_id = $4, loaded = $5 WHERE lower = $1`,
			m.lower, n, m.lastAt, m.lastID, m.loaded)
		return err
	})
}

// makeAhead makes the partitions of the current month and of those to come.
func (c *conversion) makeAhead(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		return makeMonths(ctx, tx, `SELECT date_trunc('month', now()) + make_interval(months => i) AS m FROM generate_series(0, $1::int) i`, c.Ahead)
	})
	if err != nil {
		return fmt.Errorf("make the partitions to come: %w", err)
	}
	return nil
}

// makeMonths makes the partitions that are missing of the months (m) that a query gives.
func makeMonths(ctx context.Context, tx pgx.Tx, months string, args ...any) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(`
		WITH wanted AS MATERIALIZED (%s), there AS MATERIALIZED (SELECT * FROM audit_convert.audit_log_partition_bounds())
		SELECT audit_convert.create_audit_log_partition(to_char(m, '"audit_log_"YYYY_MM'), m, m + interval '1 month', 'migrate convert') FROM (
			SELECT DISTINCT m FROM wanted WHERE NOT EXISTS (SELECT FROM there WHERE coalesce(lower_bound, '-infinity') < m + interval '1 month' AND coalesce(upper_bound, 'infinity') > m)
			OFFSET 0) missing`, months), args...)
	return err
}
