package indexes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// querier is a connection, a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Chosen reads what the database was told to have.
func Chosen(ctx context.Context, db querier) (Choice, error) {
	rows, err := db.Query(ctx, `SELECT profile, build FROM audit_index_profile`)
	if err != nil {
		return Choice{}, fmt.Errorf("read the profile of indexes: %w", err)
	}
	c, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Choice])
	if err != nil {
		return Choice{}, fmt.Errorf("read the profile of indexes: %w", err)
	}
	return c, nil
}

// ErrNotEmpty means that audit_log has rows, so that its indexes have to be changed one by one.
var ErrNotEmpty = errors.New("audit_log has rows: `auditsink migrate indexes --execute` changes its indexes while ingest goes on")

// Choose gives an audit_log without rows the indexes of a choice, in the caller's transaction, which keeps everybody else from audit_log until its end. It does nothing where
// the database has that choice already, and returns [ErrNotEmpty] where there are rows. It waits two seconds for each lock (lock_not_available, 55P03): all that while, who comes later waits behind it.
func Choose(ctx context.Context, tx pgx.Tx, c Choice) error {
	had, err := Chosen(ctx, tx)
	if err != nil || had == c {
		return err
	}
	if err := vacant(ctx, tx); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'; LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE`); err != nil {
		return fmt.Errorf("lock audit_log: %w", err)
	}
	if err := vacant(ctx, tx); err != nil {
		return err
	}
	if err := strip(ctx, tx, c); err != nil {
		return err
	}
	parent, err := look(ctx, tx, "audit_log")
	if err != nil {
		return err
	}
	for _, i := range c.Parent() {
		if parent.has(i) {
			continue
		}
		if err := parent.free(ctx, tx, i); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `CREATE INDEX `+i.Name("audit_log")+` ON audit_log `+i.definition()); err != nil {
			return fmt.Errorf("create index %s: %w", i.Name("audit_log"), err)
		}
	}
	return choose(ctx, tx, c, "done")
}

// strip drops what a choice doesn't want of the indexes that audit_log has, which by a change that was stopped half way isn't what is on record, and all that such a one left of its empty partitions' own.
func strip(ctx context.Context, tx pgx.Tx, c Choice) error {
	parent, tables, err := survey(ctx, tx)
	if err != nil {
		return err
	}
	var names []string
	for _, i := range every {
		for _, p := range parent.indexes {
			if p.ours(parent.name, i) && (!p.Valid || !slices.Contains(c.Parent(), i)) {
				names = append(names, parent.of(p.Name))
			}
		}
		for _, t := range tables {
			for _, p := range t.indexes {
				if t.attached && !p.Attached && p.ours(t.name, i) {
					names = append(names, t.of(p.Name))
				}
			}
		}
	}
	for _, name := range names {
		if _, err := tx.Exec(ctx, `DROP INDEX `+name); err != nil {
			return fmt.Errorf("drop index %s: %w", name, err)
		}
	}
	return nil
}

// vacant returns [ErrNotEmpty] where audit_log has rows. It keeps no lock (ROLLBACK TO SAVEPOINT gives them up): two who look, and want a stronger one then, would wait for each other.
func vacant(ctx context.Context, tx pgx.Tx) error {
	look, err := tx.Begin(ctx)
	var some bool
	if err == nil {
		err = errors.Join(look.QueryRow(ctx, `SELECT EXISTS (SELECT FROM audit_log)`).Scan(&some), look.Rollback(ctx))
	}
	switch {
	case err != nil:
		return fmt.Errorf("look for rows in audit_log: %w", err)
	case some:
		return ErrNotEmpty
	}
	return nil
}
