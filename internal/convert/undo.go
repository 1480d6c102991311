package convert

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// ErrSwapped means that a conversion can't be rolled back any more.
var ErrSwapped = errors.New("audit_log is auditsink's already: what was stored since the swap is in the new table only, so going back would lose it. " +
	"The replaced table is in the schema audit_replaced for as long as nobody drops it; copy from there by hand what you need")

// ErrNothing means that there is no conversion to roll back, or no replaced table to drop.
var ErrNothing = errors.New("there is nothing to undo: no conversion has begun")

// Rollback removes all that a conversion has made, up to the swap, and leaves the old table as it was. It can be repeated until it is through. It fails with [ErrSwapped]
// after the swap, and with [ErrNothing] where no conversion has begun.
func Rollback(ctx context.Context, o Options) error {
	c, err := begin(ctx, o)
	if err != nil {
		return err
	}
	defer c.close(ctx)
	switch {
	case c.ours:
		return ErrSwapped
	case c.stage == "":
		return ErrNothing
	}
	p := Progress{Stage: "rolling back"}
	c.Report(p)
	err = c.briefly(ctx, p, "ACCESS EXCLUSIVE", func(tx pgx.Tx) error {
		for _, t := range c.followed() {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`DROP TRIGGER IF EXISTS auditsink_convert_note ON %[1]s; DROP TRIGGER IF EXISTS auditsink_convert_refuse ON %[1]s`, t.relation)); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `UPDATE audit_convert.convert_state SET stage = $1`, rollback)
		return err
	})
	if err != nil {
		return fmt.Errorf("drop the triggers that note changes: %w", err)
	}
	hit("rolling-back")
	// Table by table: all at once would take more locks than a server has by default.
	tables, err := c.list(ctx, `SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'audit_convert'::regnamespace AND relkind = 'r' AND relname LIKE 'audit\_log\_%'`)
	if err != nil {
		return fmt.Errorf("list what to drop: %w", err)
	}
	for _, t := range tables {
		if _, err := c.conn.Exec(ctx, `DROP TABLE `+t); err != nil {
			return fmt.Errorf("drop %s: %w", t, err)
		}
		hit("rollback.dropped")
	}
	if _, err := c.conn.Exec(ctx, `DROP SCHEMA audit_convert CASCADE`); err != nil {
		return fmt.Errorf("drop the schema audit_convert: %w", err)
	}
	return nil
}

// Dropped is the outcome of [DropReplaced].
type Dropped struct {
	Rows   int64 `json:"rows"`
	Months int   `json:"months"`
}

// ChangedError means that the replaced table isn't what it was at the swap: somebody has written to it since, or to what is on record.
type ChangedError struct {
	Month          string
	Rows, Recorded int64
}

// Error names the month and says what to do.
func (e *ChangedError) Error() string {
	return fmt.Sprintf("the replaced table isn't what was put on record when it was converted: %s has %d rows, on record are %d, or their hashes differ; nothing was dropped: "+
		"find out who writes to audit_replaced.audit_log, and bring what is missing into audit_log before you drop the schema audit_replaced by hand", e.Month, e.Rows, e.Recorded)
}

// DropReplaced drops the table that was replaced, after a last comparison with what was put on record at the swap. A month that differs is a [*ChangedError],
// and nothing is dropped. Where something depends on it, the server says what.
func DropReplaced(ctx context.Context, o Options) (Dropped, error) {
	c, err := begin(ctx, o)
	if err != nil {
		return Dropped{}, err
	}
	defer c.close(ctx)
	switch {
	case !c.ours:
		return Dropped{}, errors.New("audit_log is not converted yet: there is no replaced table to drop")
	case !c.replaced:
		return Dropped{}, ErrNothing
	}
	old, faults, err := find(ctx, c.conn, "audit_replaced", auditLog)
	if err != nil {
		return Dropped{}, err
	}
	if old == nil || len(faults) > 0 {
		return Dropped{}, &Refusal{append(faults, "the schema audit_replaced doesn't hold what the conversion has put there")}
	}
	var d Dropped
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE `+old.relation+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		o.report("comparing with what is on record")
		is, err := monthly(ctx, tx, sums(old.row(), old.relation))
		if err != nil {
			return fmt.Errorf("add up the replaced table: %w", err)
		}
		events := pgx.Identifier{c.schema, "audit_partition_event"}.Sanitize()
		was, err := monthly(ctx, tx, `SELECT lower_bound AS month, sum(row_count)::bigint AS n, sum((detail->'md5_sums'->>0)::numeric) AS a, sum((detail->'md5_sums'->>1)::numeric) AS b
			FROM `+events+` WHERE kind IN ('convert', 'set_aside') AND detail ? 'md5_sums' GROUP BY 1`)
		if err != nil {
			return fmt.Errorf("read what is on record: %w", err)
		}
		for month, s := range is {
			if was[month] != s {
				return &ChangedError{Month: month, Rows: s.Rows, Recorded: was[month].Rows}
			}
			delete(was, month)
			d.Rows += s.Rows
			d.Months++
		}
		for month, s := range was {
			return &ChangedError{Month: month, Recorded: s.Rows}
		}
		// Only what the swap has put there.
		err = statements(ctx, tx, `SELECT format('DROP TABLE %s', string_agg(oid::regclass::text, ', ')) FROM pg_class
			WHERE relnamespace = 'audit_replaced'::regnamespace AND relkind = 'r' AND relname = ANY($1)
			UNION ALL SELECT format('DROP ROUTINE %s', oid::regprocedure) FROM pg_proc WHERE pronamespace = 'audit_replaced'::regnamespace
			  AND proname IN (SELECT proname FROM pg_proc WHERE pronamespace = $2::text::regnamespace)`,
			[]string{auditLog.name, retentionPolicy.name, integrityLog.name}, quote(c.schema))
		if err != nil {
			return fmt.Errorf("drop the replaced tables: %w", err)
		}
		others, err := c.list(ctx, `SELECT pg_describe_object(classid, objid, 0) FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'audit_replaced'::regnamespace`)
		if err != nil {
			return fmt.Errorf("list what is left in the schema audit_replaced: %w", err)
		}
		if len(others) > 0 {
			return fmt.Errorf("the schema audit_replaced holds what the conversion didn't put there, so nothing was dropped; move it away first: %s", strings.Join(others, "; "))
		}
		if _, err := tx.Exec(ctx, `DROP SCHEMA audit_replaced RESTRICT`); err != nil {
			return fmt.Errorf("drop the schema audit_replaced: %w", err)
		}
		return nil
	})
	return d, err
}

func (o Options) report(stage string) {
	if o.Report != nil {
		o.Report(Progress{Stage: stage})
	}
}
