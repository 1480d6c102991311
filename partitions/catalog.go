package partitions

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// List returns the partitions of audit_log by time.
func List(ctx context.Context, db *pgxpool.Pool) ([]Bounds, error) {
	return list(ctx, db)
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func list(ctx context.Context, db querier) ([]Bounds, error) {
	rows, err := db.Query(ctx, `
		SELECT partition_name, lower_bound, upper_bound, is_default, is_detaching FROM audit_log_partition_bounds()`)
	if err != nil {
		return nil, fmt.Errorf("read the partitions of audit_log: %w", err)
	}
	partitions, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Bounds, error) {
		var b Bounds
		var from, to *time.Time
		err := row.Scan(&b.Name, &from, &to, &b.Default, &b.Detaching)
		b.From, b.To = utc(from), utc(to)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the partitions of audit_log: %w", err)
	}
	slices.SortFunc(partitions, byTime)
	return partitions, nil
}

// utc turns null into the zero time.
func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// read is what Plan needs, as of the caller's snapshot.
func read(ctx context.Context, db querier) (Catalog, error) {
	partitions, err := list(ctx, db)
	if err != nil {
		return Catalog{}, err
	}
	detached, err := listDetached(ctx, db)
	if err != nil {
		return Catalog{}, err
	}
	// A table's name is also its row type's, so a domain or an enum is in the way as well.
	rows, err := db.Query(ctx, `
		SELECT c.relname::text FROM pg_class parent
		JOIN pg_class c ON c.relnamespace = parent.relnamespace
		WHERE parent.oid = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9_]+$'
		  AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid AND i.inhparent = parent.oid)
		UNION
		SELECT t.typname::text FROM pg_class parent
		JOIN pg_type t ON t.typnamespace = parent.relnamespace
		WHERE parent.oid = 'audit_log'::regclass AND t.typname ~ '^audit_log_[0-9_]+$' AND t.typrelid = 0
		ORDER BY 1`)
	if err != nil {
		return Catalog{}, fmt.Errorf("read the names in use: %w", err)
	}
	others, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return Catalog{}, fmt.Errorf("read the names in use: %w", err)
	}
	others = slices.DeleteFunc(others, func(name string) bool {
		return slices.ContainsFunc(detached, func(b Bounds) bool { return b.Name == name })
	})
	return Catalog{Partitions: partitions, Detached: detached, Others: others}, nil
}

// listDetached lists the partitions on their way out that are no longer attached, and not dropped yet.
func listDetached(ctx context.Context, db querier) ([]Bounds, error) {
	rows, err := db.Query(ctx, `
		SELECT e.partition_name, e.lower_bound, e.upper_bound FROM pg_class parent
		JOIN pg_class c ON c.relnamespace = parent.relnamespace AND c.relkind = 'r' AND NOT c.relispartition
		JOIN audit_partition_event e ON e.partition_name = c.relname
		WHERE parent.oid = 'audit_log'::regclass AND e.kind = 'drop' AND e.state IN ('verified', 'detached')
		ORDER BY 2 NULLS FIRST, 1`)
	if err != nil {
		return nil, fmt.Errorf("read the partitions on their way out: %w", err)
	}
	detached, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Bounds, error) {
		var b Bounds
		var from, to *time.Time
		err := row.Scan(&b.Name, &from, &to)
		b.From, b.To = utc(from), utc(to)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the partitions on their way out: %w", err)
	}
	return detached, nil
}
