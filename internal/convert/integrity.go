package convert

import (
	"context"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"
)

// The log of verifications may be as long as audit_log, so it is copied and followed in the same way, but for the partitions. The policies are few, and copied by the swap.

const (
	integrityChanges = "audit_convert.convert_change_integrity"
	integrityTable   = "audit_convert.audit_integrity_log"
)

// copyIntegrity copies the rows whose ids are above all that are copied. Those that come out of turn are noted.
func (c *conversion) copyIntegrity(ctx context.Context) error {
	if c.integrity == nil {
		return nil
	}
	c.Report(Progress{Stage: "copying audit_integrity_log", Total: c.total})
	for {
		tag, err := c.conn.Exec(ctx, fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s FROM %s o WHERE o.id > (SELECT coalesce(max(id), %d) FROM %[1]s) ORDER BY o.id LIMIT $1`,
			integrityTable, c.integrity.names(), c.integrity.values(), c.integrity.relation, math.MinInt64), c.Batch)
		if err != nil {
			return fmt.Errorf("copy audit_integrity_log: %w", err)
		}
		hit("integrity")
		if tag.RowsAffected() < int64(c.Batch) {
			return nil
		}
		if err := sleep(ctx, c.Pause); err != nil {
			return err
		}
	}
}

// applyIntegrity does for the log of verifications what apply does for audit_log.
func (c *conversion) applyIntegrity(ctx context.Context, tx pgx.Tx, most int) error {
	if c.integrity == nil {
		return nil
	}
	ids, err := takeNotes(ctx, tx, integrityChanges, most)
	if err != nil || len(ids) == 0 {
		return err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM `+integrityTable+` WHERE id = ANY($1::bigint[])`, ids); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s FROM %s o WHERE o.id = ANY($1::bigint[])`, integrityTable, c.integrity.names(), c.integrity.values(), c.integrity.relation), ids)
	if err != nil {
		return err
	}
	return c.compareIntegrity(ctx, tx, `id = ANY($1::bigint[])`, ids)
}

// compareIntegrity compares the rows of a condition.
func (c *conversion) compareIntegrity(ctx context.Context, tx pgx.Tx, where string, args ...any) error {
	var both [2]sum
	for i, from := range []string{c.integrity.relation, integrityTable} {
		query := total(sumsBy("verification_timestamp", c.integrity.row(), from+" r WHERE "+where))
		if err := tx.QueryRow(ctx, query, args...).Scan(&both[i].Rows, &both[i].A, &both[i].B); err != nil {
			return fmt.Errorf("add up %s: %w", from, err)
		}
	}
	if both[0] != both[1] {
		return &MismatchError{Month: "audit_integrity_log", Old: both[0].Rows, New: both[1].Rows}
	}
	return nil
}
