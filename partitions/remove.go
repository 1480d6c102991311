package partitions

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// RemoveEmpty removes the given partitions where they are empty, whatever their age and legal holds, for they hold nothing; without a grace period. What gets a row
// until then stays. Where it is interrupted, [Retire] goes on with it.
func RemoveEmpty(ctx context.Context, db *pgxpool.Pool, term Term, which []Bounds, why string) ([]Action, error) {
	r := &round{db: db, term: term, now: end} // so that the database's clock is taken
	var ways []way
	var failed []error
	for _, b := range which {
		w, err := r.markEmpty(ctx, b.Name, why)
		switch {
		case r.over(ctx, err):
			return r.done, err
		case err != nil && waits(err):
			r.wait(b.Name, err)
		case err != nil:
			failed = append(failed, fmt.Errorf("remove partition %s: %w", b.Name, err))
		case w.removed:
			ways = append(ways, w)
		}
	}
	failed = append(failed, r.walk(ctx, ways))
	return r.done, errors.Join(failed...)
}

// markEmpty puts on record that a partition is to go since it is empty. What is on its way out already, or isn't empty, is left.
func (r *round) markEmpty(ctx context.Context, name, why string) (way, error) {
	var w way
	err := transact(ctx, r.db, func(tx pgx.Tx) (err error) {
		if err = alone(ctx, tx); err != nil {
			return err
		}
		if w, err = lookAt(ctx, tx, name); err != nil || !w.attached || w.Detaching || w.Default || w.strange || w.open() {
			return err
		}
		some, err := holdsRows(ctx, tx, w.table)
		if err != nil || some {
			return err
		}
		err = r.recordVerified(ctx, tx, w, 0, map[string]any{"why": why, "removed_empty": true})
		if err != nil {
			return err
		}
		if w, err = lookAt(ctx, tx, name); err != nil {
			return err
		}
		return r.term.confirm(ctx, tx)
	})
	return w, err
}
