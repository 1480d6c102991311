package partitions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Action is something that maintenance did, or had to leave.
type Action struct {
	Name string `json:"name"` // of the partition
	What string `json:"what"` // verified, detached, finalized, restored, dropped, refused, expired; or waits: left to the next round
	Rows int64  `json:"rows,omitempty"`
	Why  string `json:"why,omitempty"`
}

// String describes the action for people.
func (a Action) String() string {
	text := fmt.Sprintf("partition %s: %s", a.Name, a.What)
	switch a.What {
	case "verified", "detached", "dropped", "expired":
		text += fmt.Sprintf(", %d rows", a.Rows)
	}
	if a.Why != "" {
		text += ": " + a.Why
	}
	return text
}

// inUTC makes times that the server reads or writes as text unambiguous.
const inUTC = `; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'`

// transact runs a transaction in which each statement sees what was committed before it, and no lock is waited for for long.
func transact(ctx context.Context, db *pgxpool.Pool, do func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, limits+inUTC); err != nil {
			return err
		}
		return do(tx)
	})
}

// alone makes a transaction wait for others that create, attach or remove partitions.
func alone(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(lockID))
	return err
}

// firm keeps legal holds and policies as they are until the transaction ends. What is looked at after it holds for what is removed then: a hold being
// placed at the same time is either seen, or comes when the rows are gone.
func firm(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `LOCK TABLE audit_legal_hold, audit_retention_policy IN SHARE MODE`)
	return err
}

// persist tries again, as [Ensure] does, while a lock can't be had.
func persist(ctx context.Context, try func() error) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := try()
		if err != nil && !waits(err) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxElapsedTime(patience))
	return err
}

// waits tells whether an error passes by itself: see passing; or another detach is pending (object_not_in_prerequisite_state), a table is in use by a
// cursor of another (object_in_use), the time for a statement is over (query_canceled), or a table has just gone (undefined_table).
func waits(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "55000", "55006", "57014", "42P01":
		return true
	default:
		return passing(err)
	}
}

// count is what a table holds.
type count struct {
	rows           int64
	oldest, newest time.Time
	policies       []policyCount
}

type policyCount struct {
	Policy *string `json:"policy"`
	Rows   int64   `json:"rows"`
}

// countRows reads all of a table.
func countRows(ctx context.Context, db querier, table string) (count, error) {
	var c count
	rows, err := db.Query(ctx, `SELECT retention_policy, count(*), min(timestamp), max(timestamp) FROM `+table+` GROUP BY 1 ORDER BY 1`)
	if err != nil {
		return c, fmt.Errorf("count the rows of %s: %w", table, err)
	}
	var p policyCount
	var oldest, newest time.Time
	_, err = pgx.ForEachRow(rows, []any{&p.Policy, &p.Rows, &oldest, &newest}, func() error {
		c.rows += p.Rows
		c.policies = append(c.policies, p)
		if c.oldest.IsZero() || oldest.Before(c.oldest) {
			c.oldest = oldest.UTC()
		}
		if newest.After(c.newest) {
			c.newest = newest.UTC()
		}
		p.Policy = nil
		return nil
	})
	if err != nil {
		return c, fmt.Errorf("count the rows of %s: %w", table, err)
	}
	return c, nil
}

// agrees tells whether what was counted, by reading every row, is what a table was judged by: its bounds, and the policies that an index led to. An index that is
// broken (by a new version of the system's collations, say) must not cost rows, nor must rows that were put into a table after it was detached.
func (c count) agrees(w way, v verdict) error {
	for _, counted := range c.policies {
		if !slices.ContainsFunc(v.policies, func(p *string) bool {
			return (p == nil) == (counted.Policy == nil) && deref(p) == deref(counted.Policy)
		}) {
			return fmt.Errorf("%s holds rows of a policy that its index on retention_policy doesn't lead to, so it stays: run `REINDEX TABLE %s`, and see what broke the index", w.Name, w.table)
		}
	}
	if c.rows > 0 && (!w.From.IsZero() && c.oldest.Before(w.From) || !w.To.IsZero() && !c.newest.Before(w.To)) {
		return fmt.Errorf("%s holds rows from outside of its range, %s to %s, so it stays: take them out of it, or rename it", w.Name, stamp(w.From), stamp(w.To))
	}
	return nil
}

// detail is the count for the record.
func (c count) detail(more map[string]any) map[string]any {
	all := map[string]any{"policies": append([]policyCount{}, c.policies...)}
	if c.rows > 0 {
		all["oldest"], all["newest"] = c.oldest, c.newest
	}
	for k, v := range more {
		all[k] = v
	}
	return all
}
