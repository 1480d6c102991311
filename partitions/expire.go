package partitions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/failpoint"
)

const (
	expireBatch = 1_000  // rows removed by one transaction
	expireRound = 50_000 // rows removed by one round, so that it ends soon; the next goes on
	// expirePause is the least pause between two batches. It is as long as the batch took, so that at most half of the time goes into removing.
	expirePause = 10 * time.Millisecond
)

// expiring is what one policy keeps in one partition, or no longer does.
type expiring struct {
	way
	policy *string
}

// Expire removes rows that have expired while their partition stays, and are under no legal hold. What is to go is counted and put on record before any of
// it goes. It is one round: what has to wait, or is too much for a round, is left to the next. Where the retention isn't enforced, it does nothing.
func Expire(ctx context.Context, db *pgxpool.Pool, term Term, now time.Time, retention Retention) ([]Action, error) {
	if !retention.Enforce {
		return nil, nil
	}
	r := &round{db: db, term: term, now: now, retention: retention}
	all, err := r.expiring(ctx)
	if err != nil {
		return nil, err
	}
	budget := int64(expireRound)
	var failed []error
	if len(r.done) == 0 { // all could be looked at
		if err := r.closeOthers(ctx, all); r.over(ctx, err) {
			return nil, err
		} else if err != nil {
			failed = append(failed, err)
		}
	}
	for _, e := range all {
		removed, err := r.expire(ctx, e, budget)
		budget -= removed
		switch {
		case r.over(ctx, err):
			return r.done, errors.Join(append(failed, err)...)
		case err != nil && waits(err):
			r.wait(e.Name, err)
		case err != nil:
			failed = append(failed, fmt.Errorf("remove expired rows of partition %s: %w", e.Name, err))
		}
		if budget <= 0 {
			break
		}
	}
	return r.done, errors.Join(failed...)
}

// expiring lists what may have rows to remove. Partitions that have expired whole are left to [Retire], and those on their way out to their ends.
func (r *round) expiring(ctx context.Context) ([]expiring, error) {
	ways, err := look(ctx, r.db)
	if err != nil {
		return nil, err
	}
	b, err := convene(ctx, r.db, r.now, r.retention)
	if err != nil {
		return nil, err
	}
	untold, err := untoldOf(ctx, r.db)
	if err != nil {
		return nil, err
	}
	var all []expiring
	for _, w := range ways {
		if !w.attached || w.Detaching || w.strange || w.state == "verified" || w.From.AddDate(0, 0, r.retention.MinDays).After(b.now) {
			continue
		}
		if untold[w.Name] {
			r.wait(w.Name, errUnbuilt)
			continue
		}
		v, err := b.judgeSoon(ctx, r.db, w)
		switch {
		case gone(err) || err == nil && v.Expired(v.now):
			continue
		case err != nil && waits(err):
			r.wait(w.Name, err)
			continue
		case err != nil:
			return nil, err
		}
		for _, policy := range v.policies {
			days, _ := b.keeps(policy)
			if last, some := cutoff(b.now, days); some && !last.Before(w.From) {
				all = append(all, expiring{w, policy})
			}
		}
	}
	return all, nil
}

// closeOthers ends what was begun and has nothing more to remove: the policy was edited, or the partition is going as a whole.
func (r *round) closeOthers(ctx context.Context, all []expiring) error {
	var names, policies []string
	for _, e := range all {
		names = append(names, e.Name)
		policies = append(policies, deref(e.policy))
	}
	err := transact(ctx, r.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			UPDATE audit_partition_event e SET state = 'done', term = $3, updated_at = clock_timestamp()
			WHERE kind = 'expire' AND state = 'verified' AND NOT EXISTS (
				SELECT FROM unnest($1::text[], $2::text[]) AS o (name, policy) WHERE o.name = e.partition_name AND o.policy = coalesce(e.detail->>'policy', ''))`,
			append([]string{}, names...), append([]string{}, policies...), r.term.Number)
		if err != nil {
			return err
		}
		return r.term.confirm(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("close the records of expired rows: %w", err)
	}
	return nil
}

// deref is what a policy is called where it is only compared.
func deref(policy *string) string {
	if policy == nil {
		return ""
	}
	return *policy
}

// expire removes up to budget rows of one policy in one partition.
func (r *round) expire(ctx context.Context, e expiring, budget int64) (removed int64, err error) {
	event, left, err := r.countExpired(ctx, e)
	if err != nil || event == 0 {
		return 0, err
	}
	failpoint.Hit("expire.verified")
	for removed < budget && left > 0 {
		begin := time.Now()
		n, over, err := r.expireBatch(ctx, e, event, min(expireBatch, left, budget-removed))
		removed += n
		left -= n
		failpoint.Hit("expire.batch")
		if err != nil || over {
			r.expired(e, removed)
			return removed, err
		}
		select {
		case <-ctx.Done():
			return removed, context.Cause(ctx)
		case <-time.After(max(time.Since(begin), expirePause)):
		}
	}
	if left <= 0 { // to say that it is done
		_, _, err = r.expireBatch(ctx, e, event, 0)
	}
	r.expired(e, removed)
	return removed, err
}

func (r *round) expired(e expiring, removed int64) {
	if removed > 0 {
		r.did(e.Name, "expired", removed, "their policies keep them for less than others of the partition")
	}
}

// old is the condition on rows t of a table that they are of the policy $1, have expired ($2: the latest timestamp of those), and are under no hold.
func (e expiring) old() string {
	of := ` t.retention_policy = $1::text`
	if e.policy == nil {
		of = ` $1::text IS NULL AND t.retention_policy IS NULL`
	}
	return e.table + ` t WHERE` + of + ` AND t.timestamp <= $2::timestamptz AND` + unheld
}

// countExpired finds the record of what is being removed, or makes one; 0 where there is nothing to remove. left is what the record still allows to
// be removed: never more goes than was counted, so what comes later is another record's.
func (r *round) countExpired(ctx context.Context, e expiring) (event, left int64, err error) {
	err = transact(ctx, r.db, func(tx pgx.Tx) error {
		last, some, err := r.last(ctx, tx, e)
		if err != nil || !some {
			return err
		}
		err = tx.QueryRow(ctx, `
			SELECT id, coalesce((detail->>'counted')::bigint, 0) - coalesce(row_count, 0) FROM audit_partition_event
			WHERE partition_name = $1 AND kind = 'expire' AND state = 'verified' AND detail->>'policy' IS NOT DISTINCT FROM $2::text ORDER BY id LIMIT 1`,
			e.Name, e.policy).Scan(&event, &left)
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		var rows int64
		var oldest, newest *time.Time
		err = tx.QueryRow(ctx, `SELECT count(*), min(t.timestamp), max(t.timestamp) FROM `+e.old(), e.policy, last).Scan(&rows, &oldest, &newest)
		if err != nil || rows == 0 {
			return err
		}
		detail, err := asJSON(map[string]any{"policy": e.policy, "cutoff": last, "counted": rows, "oldest": utc(oldest), "newest": utc(newest)})
		if err != nil {
			return err
		}
		left = rows
		// Its row_count is what was removed by now.
		err = tx.QueryRow(ctx, `
			INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, row_count, detail, state, term)
			VALUES ($1, 'expire', $2, $3, 0, $4::text::jsonb, 'verified', $5) RETURNING id`, e.Name, orNull(e.From), orNull(e.To), detail, r.term.Number).Scan(&event)
		if err != nil {
			return err
		}
		return r.term.confirm(ctx, tx)
	})
	if err != nil {
		return 0, 0, err
	}
	return event, left, nil
}

// last is the latest timestamp of rows that have expired, by the policies as they are.
func (r *round) last(ctx context.Context, tx pgx.Tx, e expiring) (time.Time, bool, error) {
	b, err := convene(ctx, tx, r.now, r.retention)
	if err != nil {
		return time.Time{}, false, err
	}
	days, _ := b.keeps(e.policy)
	last, some := cutoff(b.now, days)
	return last, some, nil
}

// expireBatch removes up to limit rows. over tells that there are none left to remove now, and the record says so.
func (r *round) expireBatch(ctx context.Context, e expiring, event, limit int64) (removed int64, over bool, err error) {
	err = transact(ctx, r.db, func(tx pgx.Tx) error {
		if err := alone(ctx, tx); err != nil {
			return err
		}
		if err := firm(ctx, tx); err != nil {
			return err
		}
		last, some, err := r.last(ctx, tx, e)
		if err != nil {
			return err
		}
		if some && limit > 0 {
			// Rows that somebody has locked are the next round's.
			tag, err := tx.Exec(ctx, `DELETE FROM `+e.table+` WHERE ctid = ANY (ARRAY(SELECT t.ctid FROM `+e.old()+` LIMIT $3::bigint FOR UPDATE OF t SKIP LOCKED))`, e.policy, last, limit)
			if err != nil {
				return err
			}
			removed = tag.RowsAffected()
		}
		over = removed == 0
		_, err = tx.Exec(ctx, `
			UPDATE audit_partition_event SET row_count = row_count + $2, term = $3, updated_at = clock_timestamp(), state = CASE WHEN $4::boolean THEN 'done' ELSE state END
			WHERE id = $1`, event, removed, r.term.Number, over)
		if err != nil {
			return err
		}
		if err := r.term.confirm(ctx, tx); err != nil {
			return err
		}
		failpoint.Hit("expire.batch.before-commit")
		return nil
	})
	if err != nil {
		return 0, false, err
	}
	return removed, over, nil
}
