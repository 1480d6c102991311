package partitions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// way is a partition, or what was one, and how far it is on its way out: what the catalog and our record say of it.
type way struct {
	Bounds             // from the catalog where it is attached or pending, otherwise from the record
	oid         uint32 // of the table; 0: there is none
	table       string // its quoted name with the schema
	attached    bool   // in the catalog as a partition, a pending detach included
	strange     bool   // not a plain table in audit_log's schema, so not ours to remove
	event       int64  // the row of its last way out; 0: there is none
	state       string // of that
	rows        int64  // recorded there
	verifiedOID uint32 // the table that was put on record as verified; 0: there is no telling
	detachedOID uint32 // the table that was put on record as detached
	detachedAt  time.Time
	removed     bool // to go since it is empty, whatever its age
}

// open tells whether its last way out goes on.
func (w way) open() bool {
	return w.state == "requested" || w.state == "verified" || w.state == "detached"
}

// swapped tells whether what has its name isn't the table that was put on record as verified, or as detached.
func (w way) swapped() bool {
	switch {
	case w.oid == 0:
		return false
	case w.state == "verified":
		return w.verifiedOID != 0 && w.oid != w.verifiedOID
	default:
		return !w.attached && w.state == "detached" && w.oid != w.detachedOID
	}
}

// look reads partitions and ways out by time, all or those of the given names. What is attached is there, and of what is not attached whatever has
// an open way out, or is a table though its last way out has ended with it attached.
func look(ctx context.Context, db querier, names ...string) ([]way, error) {
	rows, err := db.Query(ctx, `
		WITH part AS (
			SELECT b.*, format('%I.%I', n.nspname, c.relname) AS qualified,
				c.relkind <> 'r' OR n.oid <> (SELECT relnamespace FROM pg_class WHERE oid = 'audit_log'::regclass) AS strange
			FROM audit_log_partition_bounds() b JOIN pg_class c ON c.oid = b.relid JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE cardinality($1::text[]) = 0 OR b.partition_name = ANY ($1::text[])
		), event AS (
			SELECT DISTINCT ON (partition_name) * FROM audit_partition_event
			WHERE kind = 'drop' AND (cardinality($1::text[]) = 0 OR partition_name = ANY ($1::text[]))
			ORDER BY partition_name, state IN ('requested', 'verified', 'detached') DESC, id DESC
		), loose AS (
			SELECT c.oid, c.relname::text AS name, format('%I.%I', n.nspname, c.relname) AS qualified
			FROM pg_class parent JOIN pg_class c ON c.relnamespace = parent.relnamespace JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE parent.oid = 'audit_log'::regclass AND c.relkind = 'r' AND NOT c.relispartition
		)
		SELECT coalesce(part.partition_name, event.partition_name), part.relid IS NOT NULL, coalesce(part.is_default, false), coalesce(part.is_detaching, false),
			CASE WHEN part.relid IS NULL THEN event.lower_bound ELSE part.lower_bound END, CASE WHEN part.relid IS NULL THEN event.upper_bound ELSE part.upper_bound END,
			coalesce(part.strange, false), coalesce(part.relid, loose.oid, 0), coalesce(part.qualified, loose.qualified, ''),
			coalesce(event.id, 0), coalesce(event.state, ''), coalesce(event.row_count, 0), coalesce((event.detail->>'oid')::oid, 0), coalesce((event.detail->>'detached_oid')::oid, 0), (event.detail->>'detached_at')::timestamptz,
			coalesce((event.detail->>'removed_empty')::boolean, false)
		FROM part FULL JOIN event ON event.partition_name = part.partition_name
		LEFT JOIN loose ON part.relid IS NULL AND loose.name = event.partition_name
		WHERE part.relid IS NOT NULL OR event.state IN ('requested', 'verified', 'detached') OR loose.oid IS NOT NULL AND event.state IN ('restored', 'refused')`, append([]string{}, names...))
	if err != nil {
		return nil, fmt.Errorf("read the partitions and their ways out: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (way, error) {
		var w way
		var from, to, detached *time.Time
		err := row.Scan(&w.Name, &w.attached, &w.Default, &w.Detaching, &from, &to, &w.strange, &w.oid, &w.table, &w.event, &w.state, &w.rows, &w.verifiedOID, &w.detachedOID, &detached, &w.removed)
		w.From, w.To, w.detachedAt = utc(from), utc(to), utc(detached)
		if !w.open() {
			w.removed = false
		}
		return w, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the partitions and their ways out: %w", err)
	}
	slices.SortFunc(all, func(a, b way) int { return byTime(a.Bounds, b.Bounds) })
	return all, nil
}

// lookAt is look for one name; the zero way where there is nothing to say of it.
func lookAt(ctx context.Context, db querier, name string) (way, error) {
	all, err := look(ctx, db, name)
	if err != nil || len(all) == 0 {
		return way{Bounds: Bounds{Name: name}}, err
	}
	return all[0], nil
}

// present lists the distinct policies in a table, nil for rows without one. The index on retention_policy leads from each to the next, so that it takes a
// few reads and not one of the whole table.
func present(ctx context.Context, db querier, table string) ([]*string, error) {
	rows, err := db.Query(ctx, `
		WITH RECURSIVE policy AS (
			(SELECT retention_policy AS name FROM `+table+` WHERE retention_policy IS NOT NULL ORDER BY 1 LIMIT 1)
			UNION ALL
			SELECT (SELECT t.retention_policy FROM `+table+` t WHERE t.retention_policy > policy.name ORDER BY 1 LIMIT 1) FROM policy WHERE policy.name IS NOT NULL
		)
		SELECT name FROM policy WHERE name IS NOT NULL
		UNION ALL SELECT NULL WHERE EXISTS (SELECT FROM `+table+` WHERE retention_policy IS NULL)`)
	if err != nil {
		return nil, fmt.Errorf("read the policies in %s: %w", table, err)
	}
	policies, err := pgx.CollectRows(rows, pgx.RowTo[*string])
	if err != nil {
		return nil, fmt.Errorf("read the policies in %s: %w", table, err)
	}
	return policies, nil
}

// readRules reads audit_retention_policy.
func readRules(ctx context.Context, db querier, least int) (rules, error) {
	rows, err := db.Query(ctx, `SELECT policy_name, coalesce(delete_after_days, retention_days), is_active FROM audit_retention_policy`)
	if err != nil {
		return rules{}, fmt.Errorf("read the retention policies: %w", err)
	}
	policies := map[bool]map[string]int{true: {}, false: {}} // by whether they are active
	var name string
	var days int
	var active bool
	_, err = pgx.ForEachRow(rows, []any{&name, &days, &active}, func() error { policies[active][name] = days; return nil })
	if err != nil {
		return rules{}, fmt.Errorf("read the retention policies: %w", err)
	}
	return newRules(policies[true], policies[false], least), nil
}

// earlier returns the earlier of a time and the database's clock: one wrong clock must remove nothing.
func earlier(ctx context.Context, db querier, now time.Time) (time.Time, error) {
	rows, err := db.Query(ctx, `SELECT clock_timestamp()`)
	if err != nil {
		return now, fmt.Errorf("read the database's clock: %w", err)
	}
	clock, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[time.Time])
	if err != nil {
		return now, fmt.Errorf("read the database's clock: %w", err)
	}
	if clock.Before(now) {
		now = clock
	}
	return now.UTC().Truncate(time.Microsecond), nil // as the database keeps it, so that what is put on record isn't later
}

// verdict is a partition's fate, and what it is judged by.
type verdict struct {
	Fate
	now      time.Time // by which it is judged
	policies []*string // that its rows have
}

// bench is what partitions are judged by.
type bench struct {
	rules
	now       time.Time
	retention Retention
}

// convene reads what partitions are judged by as it is.
func convene(ctx context.Context, db querier, now time.Time, r Retention) (bench, error) {
	now, err := earlier(ctx, db, now)
	if err != nil {
		return bench{}, err
	}
	rules, err := readRules(ctx, db, r.MinDays)
	return bench{rules: rules, now: now, retention: r}, err
}

// judge says what is to become of a partition as things are.
func judge(ctx context.Context, db querier, w way, now time.Time, r Retention) (verdict, error) {
	b, err := convene(ctx, db, now, r)
	if err != nil {
		return verdict{}, err
	}
	return b.judge(ctx, db, w)
}

func (b bench) judge(ctx context.Context, db querier, w way) (verdict, error) {
	if w.oid == 0 {
		return verdict{Fate: Fate{Bounds: w.Bounds}, now: b.now}, nil
	}
	policies, err := present(ctx, db, w.table)
	if err != nil {
		return verdict{}, err
	}
	holds, err := holdsOn(ctx, db, w)
	if err != nil {
		return verdict{}, err
	}
	v := verdict{Fate: b.fate(w.Bounds, policies, holds, b.now), now: b.now, policies: policies}
	grace := b.retention.Grace
	if w.removed {
		grace = 0
	}
	if !w.attached {
		v.State = Detached
		if w.state == "detached" && !w.detachedAt.IsZero() {
			v.DropAfter = w.detachedAt.Add(grace)
		}
	}
	switch {
	case w.strange:
		v.Due, v.Why = time.Time{}, "never: it isn't a plain table in audit_log's schema"
	case w.swapped():
		v.Due, v.Why = time.Time{}, "never: it is not the table that was put on record under this name; look at it, and restore it or move it away"
	}
	return v, nil
}

// judgeSoon is judge outside of a transaction. It waits for no lock for long: whoever keeps readers out of a partition (VACUUM FULL by hand, say, or a session
// that was left open) must hold up neither the others nor the leader.
func (b bench) judgeSoon(ctx context.Context, db *pgxpool.Pool, w way) (verdict, error) {
	return b.outlook(ctx, db, w, false)
}

// outlook is judgeSoon for who only wants to know: a partition that lacks the indexes to judge it by isn't read for that.
func (b bench) outlook(ctx context.Context, db *pgxpool.Pool, w way, untold bool) (v verdict, err error) {
	err = transact(ctx, db, func(tx pgx.Tx) error {
		if untold {
			some, err := holdsRows(ctx, tx, w.table)
			if err != nil {
				return err
			}
			if some {
				v = verdict{Fate: Fate{Bounds: w.Bounds, State: Attached, Why: notTold}, now: b.now}
				if w.Detaching {
					v.State = Detaching
				}
				return nil
			}
		}
		v, err = b.judge(ctx, tx, w)
		return err
	})
	return v, err
}

// Outlook tells for every partition, and for those that are detached and not dropped yet, when it goes and why then, or why not. It only reads, so a
// standby will do. What somebody keeps readers out of is left out, and the error says so; the rest is good all the same.
func Outlook(ctx context.Context, db *pgxpool.Pool, now time.Time, r Retention) ([]Fate, error) {
	ways, err := look(ctx, db)
	if err != nil {
		return nil, err
	}
	b, err := convene(ctx, db, now, r)
	if err != nil {
		return nil, err
	}
	untold, err := untoldOf(ctx, db)
	if err != nil {
		return nil, err
	}
	var all []Fate
	var locked []error
	for _, w := range ways {
		if w.oid == 0 {
			continue // asked to go, or on its way, and somebody else dropped it
		}
		v, err := b.outlook(ctx, db, w, untold[w.Name])
		switch {
		case gone(err):
			continue // since we looked
		case err != nil && passing(err):
			locked = append(locked, err)
			continue
		case err != nil:
			return nil, err
		}
		if v.State == Detached && v.Expired(v.now) && !v.DropAfter.IsZero() {
			v.Why += "; dropped after " + v.DropAfter.Format(time.RFC3339)
		}
		all = append(all, v.Fate)
	}
	return all, errors.Join(locked...)
}

// gone tells whether an error says that a table is no longer there.
func gone(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42P01"
}
