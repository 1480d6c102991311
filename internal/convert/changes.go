package convert

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// The swap applies what is left while nobody can write. Few changes are what it should find; with many it gives up, and they are worked off first.
const (
	few  = 100
	many = 2000
)

// catchUp applies what was noted, until little is left, or as much comes as goes.
func (c *conversion) catchUp(ctx context.Context) error {
	err := c.conn.QueryRow(ctx, `SELECT greatest((SELECT max(id) FROM audit_convert.audit_log), (SELECT max(id) FROM audit_convert.audit_log_set_aside), 0)`).Scan(&c.highest)
	if err != nil {
		return fmt.Errorf("look for the highest id: %w", err)
	}
	for round := range 10 {
		var waiting int64
		err := c.conn.QueryRow(ctx, `SELECT greatest((SELECT count(*) FROM audit_convert.convert_change), (SELECT count(*) FROM audit_convert.convert_change_integrity))`).Scan(&waiting)
		if err != nil {
			return fmt.Errorf("count the changes: %w", err)
		}
		c.Report(Progress{Stage: "applying changes", Done: c.done, Total: c.total, Note: fmt.Sprintf("%d changes are left", waiting)})
		for n := waiting; n > 0; n -= int64(c.Batch) {
			// Repeatable read: the notes that are taken and the rows as they are now belong together.
			err := pgx.BeginTxFunc(ctx, c.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
				if err := c.applyIntegrity(ctx, tx, c.Batch); err != nil {
					return fmt.Errorf("to audit_integrity_log: %w", err)
				}
				return c.apply(ctx, tx, c.Batch)
			})
			if err != nil {
				return fmt.Errorf("apply changes: %w", err)
			}
			hit("applied")
		}
		if waiting <= few && round > 0 {
			break
		}
	}
	return nil
}

// takeNotes removes the oldest notes and returns their ids, each once.
func takeNotes(ctx context.Context, tx pgx.Tx, from string, most int) (ids []int64, err error) {
	err = tx.QueryRow(ctx, fmt.Sprintf(`
		WITH taken AS (DELETE FROM %s WHERE n IN (SELECT n FROM %[1]s ORDER BY n LIMIT $1) RETURNING id)
		SELECT coalesce(array_agg(DISTINCT id), '{}') FROM taken`, from), most).Scan(&ids)
	return ids, err
}

// apply takes the oldest notes, and makes the rows of their ids with us what they are in the old table: all that we have of them goes, and what is there now
// comes. It checks that what was stored is what is there.
func (c *conversion) apply(ctx context.Context, tx pgx.Tx, most int) error {
	var stale []int64
	ids, err := takeNotes(ctx, tx, "audit_convert.convert_change", most)
	if err != nil || len(ids) == 0 {
		return err
	}
	// Most are new. What lies above all that we have needn't be looked for in every partition.
	for _, id := range ids {
		if id <= c.highest {
			stale = append(stale, id)
		}
	}
	c.highest = max(c.highest, slices.Max(ids)) // too high, should this be rolled back, is no harm
	row := c.log.row()
	var gone, came, aside, want sum
	if len(stale) > 0 {
		for table, aside := range map[string]bool{"audit_log": false, "audit_log_set_aside": true} {
			sql := changed(row, "-", aside, `DELETE FROM audit_convert.`+table+` WHERE id = ANY($1::bigint[]) RETURNING *`)
			if err := tx.QueryRow(ctx, sql, stale).Scan(&gone.Rows, &gone.A, &gone.B); err != nil {
				return fmt.Errorf("remove what has changed: %w", err)
			}
		}
	}
	now := fmt.Sprintf(`FROM %s o WHERE o.id = ANY($1::bigint[])`, c.log.relation)
	if err := makeMonths(ctx, tx, `SELECT date_trunc('month', "timestamp"::timestamptz) AS m `+now+` AND NOT `+c.outside(), ids); err != nil {
		return fmt.Errorf("make partitions for what has come: %w", err)
	}
	sql := changed(row, "+", false, fmt.Sprintf(`INSERT INTO audit_convert.audit_log (%s) SELECT %s %s AND %s IS NOT TRUE RETURNING *`, c.log.names(), c.log.values(), now, c.outside()))
	if err := tx.QueryRow(ctx, sql, ids).Scan(&came.Rows, &came.A, &came.B); err != nil {
		return fmt.Errorf("store what has changed: %w", err)
	}
	sql = changed(row, "+", true, fmt.Sprintf(`INSERT INTO audit_convert.audit_log_set_aside (%s, why) SELECT %s, '%s' %s AND %s RETURNING *`, c.log.names(), c.log.values(), whyAside, now, c.outside()))
	if err := tx.QueryRow(ctx, sql, ids).Scan(&aside.Rows, &aside.A, &aside.B); err != nil {
		return fmt.Errorf("set rows aside: %w", err)
	}
	if aside.Rows > 0 && !c.setAside {
		return &Refusal{[]string{fmt.Sprintf("%d rows have come whose timestamps are before 1970 or more than 48 hours ahead: run the command again with --set-aside", aside.Rows)}}
	}
	// The old table says in a query of its own what should have come.
	var same bool
	err = tx.QueryRow(ctx, fmt.Sprintf(`SELECT n, a::text, b::text, (n, a, b) = ($2::bigint, $3::numeric + $5::numeric, $4::numeric + $6::numeric)
		FROM (SELECT coalesce(sum(n), 0)::bigint AS n, coalesce(sum(a), 0) AS a, coalesce(sum(b), 0) AS b FROM (%s) months) want`,
		sums(row, c.log.relation+` WHERE id = ANY($1::bigint[])`)), ids, came.Rows+aside.Rows, came.A, came.B, aside.A, aside.B).Scan(&want.Rows, &want.A, &want.B, &same)
	if err != nil {
		return fmt.Errorf("check what has changed: %w", err)
	}
	if !same {
		return fmt.Errorf("of %d changed rows %d were stored, or they were stored otherwise than they are: something interferes with the tables in audit_convert", want.Rows, came.Rows+aside.Rows)
	}
	return nil
}
