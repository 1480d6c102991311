package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNoSchema means that no migration has been applied yet.
var ErrNoSchema = errors.New("the database has no auditsink schema yet: run `auditsink migrate up`")

// VersionError means that the database's schema is another version than this binary works with.
type VersionError struct {
	Database int64 // the schema's version
	Binary   int64 // the version this binary works with
}

// Newer tells whether the schema is ahead of the binary.
func (e *VersionError) Newer() bool { return e.Database > e.Binary }

// Error says which side to bring up to date, and how.
func (e *VersionError) Error() string {
	if e.Newer() {
		return fmt.Sprintf("the database schema (version %d) is newer than this binary (version %d): upgrade the binary", e.Database, e.Binary)
	}
	return fmt.Sprintf("the database schema (version %d) is older than this binary (version %d): run `auditsink migrate up`", e.Database, e.Binary)
}

// TableError means that the database has an audit_log that isn't ours.
type TableError struct {
	Table       string // with its schema
	Partitioned bool
}

// Error names the table and says what it probably is.
func (e *TableError) Error() string {
	if e.Partitioned {
		return fmt.Sprintf("table %s was not created by auditsink, or the search_path puts another schema before it: use another database or schema", e.Table)
	}
	return fmt.Sprintf("table %s is not partitioned: it is the replaced system's; run `auditsink migrate convert` to make it auditsink's, or use another database or schema", e.Table)
}

// querier is a connection or a pool.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Check tells whether the schema is the one this binary works with: nil, [ErrNoSchema], [*VersionError], [*TableError], or
// what the driver said. db is a *pgx.Conn or a *pgxpool.Pool. It only reads.
func Check(ctx context.Context, db querier) error {
	found, err := look(ctx, db)
	if err != nil {
		return err
	}
	return found.check()
}

// schema is what a database has.
type schema struct {
	versions    bool   // is the table of applied versions there?
	version     int64  // the highest one applied, 0 if none
	table       string // the audit_log on the search path, with its schema; empty if none
	partitioned bool
}

func (s schema) check() error {
	switch {
	case s.table != "" && (!s.partitioned || s.version == 0):
		return &TableError{Table: s.table, Partitioned: s.partitioned}
	case s.version == 0:
		return ErrNoSchema
	case s.version != Version():
		return &VersionError{Database: s.version, Binary: Version()}
	default:
		return nil
	}
}

func look(ctx context.Context, db querier) (schema, error) {
	var found schema
	// The version table counts only in the current schema, where goose looks; audit_log wherever a statement would find it.
	err := one(ctx, db, []any{&found.versions, &found.table, &found.partitioned}, `
		SELECT to_regclass(quote_ident(current_schema()) || '.' || $1) IS NOT NULL,
		       coalesce(n.nspname || '.' || c.relname, ''), coalesce(c.relkind = 'p', false)
		FROM (SELECT) one
		LEFT JOIN pg_class c ON c.oid = to_regclass('audit_log')
		LEFT JOIN pg_namespace n ON n.oid = c.relnamespace`, versionTable)
	if err == nil && found.versions {
		err = one(ctx, db, []any{&found.version}, `SELECT coalesce(max(version_id), 0) FROM `+versionTable+` WHERE is_applied`)
	}
	if err != nil {
		return schema{}, fmt.Errorf("read the schema's version: %w", err)
	}
	return found, nil
}

// one scans the only row of a query.
func one(ctx context.Context, db querier, into []any, sql string, args ...any) error {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	_, err = pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (struct{}, error) {
		return struct{}{}, row.Scan(into...)
	})
	return err
}

func appliedAt(ctx context.Context, db querier) (map[int64]time.Time, error) {
	rows, err := db.Query(ctx, `SELECT version_id, tstamp AT TIME ZONE 'UTC' FROM `+versionTable+` WHERE is_applied ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("read the applied migrations: %w", err)
	}
	at := map[int64]time.Time{}
	var version int64
	var when time.Time
	_, err = pgx.ForEachRow(rows, []any{&version, &when}, func() error {
		at[version] = when.UTC()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the applied migrations: %w", err)
	}
	return at, nil
}
