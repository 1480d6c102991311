package convert

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// MismatchError means that a month isn't the same in the old and in the new table. The conversion stops before the swap, and the old table goes on serving.
type MismatchError struct {
	Month    string
	Old, New int64    // rows
	Rows     []string // some of those that differ, each with its id
}

// Error names the month and some rows.
func (e *MismatchError) Error() string {
	rows := ""
	if len(e.Rows) > 0 {
		rows = " (" + strings.Join(e.Rows, "; ") + ")"
	}
	return fmt.Sprintf("%s differs: the old table has %d rows, the new one %d%s; the old table goes on serving; find out what changed the tables in the schema audit_convert, then `auditsink migrate convert --rollback` and begin again",
		e.Month, e.Old, e.New, rows)
}

// both is our rows wherever they are.
func (c *conversion) both() string {
	var names []string
	for _, h := range c.log.columns {
		names = append(names, quote(h.name))
	}
	list := strings.Join(names, ", ")
	return fmt.Sprintf(`(SELECT %s FROM audit_convert.audit_log UNION ALL SELECT %[1]s FROM audit_convert.audit_log_set_aside) r`, list)
}

const settled = ` WHERE NOT EXISTS (SELECT FROM audit_convert.convert_change p WHERE p.id = r.id)`

// reconcile compares both tables month by month, by counts and hashes, as of one moment and without the rows whose changes are yet to be applied: those are
// checked when they are. The sums of all that we have are then kept up with every change.
func (c *conversion) reconcile(ctx context.Context) error {
	p := Progress{Stage: "comparing both tables", Done: c.done, Total: c.total}
	c.Report(p)
	hit("reconciling")
	err := pgx.BeginTxFunc(ctx, c.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		row := c.log.row()
		was, err := monthly(ctx, tx, sums(row, c.log.relation+" r"+settled))
		if err != nil {
			return fmt.Errorf("add up the old table: %w", err)
		}
		p.Note = "the old table is added up"
		c.Report(p)
		is, err := monthly(ctx, tx, sums(row, c.both()+settled))
		if err != nil {
			return fmt.Errorf("add up the new table: %w", err)
		}
		for month, old := range was {
			if is[month] != old {
				return c.mismatch(ctx, tx, month, old, is[month])
			}
			delete(is, month)
		}
		for month, ours := range is {
			return c.mismatch(ctx, tx, month, sum{}, ours)
		}
		if c.integrity != nil {
			if err := c.compareIntegrity(ctx, tx, `NOT EXISTS (SELECT FROM audit_convert.convert_change_integrity p WHERE p.id = r.id)`); err != nil {
				return err
			}
		}
		// What is yet to be removed counts here.
		_, err = tx.Exec(ctx, fmt.Sprintf(`DELETE FROM audit_convert.convert_tally;
			INSERT INTO audit_convert.convert_tally (month, aside, n, a, b) SELECT month, false, n, a, b FROM (%s) t UNION ALL SELECT month, true, n, a, b FROM (%s) t`,
			sums(row, "audit_convert.audit_log"), sums(row, "audit_convert.audit_log_set_aside")))
		if err != nil {
			return fmt.Errorf("note the sums: %w", err)
		}
		return nil
	})
	hit("reconciled")
	return err
}

// monthly reads sums by month; the key is text, since a month may be of any year, or none.
func monthly(ctx context.Context, tx pgx.Tx, query string) (map[string]sum, error) {
	rows, err := tx.Query(ctx, `SELECT coalesce(month::text, 'no timestamp'), n, a::text, b::text FROM (`+query+`) months`)
	if err != nil {
		return nil, err
	}
	all := map[string]sum{}
	var month string
	var s sum
	_, err = pgx.ForEachRow(rows, []any{&month, &s.Rows, &s.A, &s.B}, func() error { all[month] = s; return nil })
	return all, err
}

// mismatch finds out which rows of a month differ.
func (c *conversion) mismatch(ctx context.Context, tx pgx.Tx, month string, was, is sum) error {
	e := &MismatchError{Month: month, Old: was.Rows, New: is.Rows}
	if at, err := time.Parse("2006-01-02 15:04:05-07", month); err == nil {
		e.Month = at.Format("2006-01")
	}
	hashed := func(from string) string {
		return fmt.Sprintf(`SELECT id::bigint AS id, md5(%s) AS m FROM %s%s AND date_trunc('month', "timestamp"::timestamptz)::text = $1`, c.log.row(), from, settled)
	}
	rows, err := tx.Query(ctx, fmt.Sprintf(`
		SELECT CASE WHEN n.m IS NULL THEN format('id %%s is missing', id) WHEN o.m IS NULL THEN format('id %%s is too many', id) ELSE format('id %%s is another', id) END
		FROM (%s) o FULL JOIN (%s) n USING (id) WHERE o.m IS DISTINCT FROM n.m ORDER BY id LIMIT 10`, hashed(c.log.relation+" r"), hashed(c.both())), month)
	if err == nil {
		e.Rows, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return fmt.Errorf("%w; which rows can't be told: %w", e, err)
	}
	return e
}
