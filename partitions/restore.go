package partitions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/postgres"
)

// attach makes a table a partition again, within the bounds on record, and ends its way out as restored. The CHECK constraint that DETACH CONCURRENTLY left
// proves that its rows are within them, so that none is read.
func attach(ctx context.Context, tx pgx.Tx, w way, term *int64, why string) error {
	statement := ""
	err := tx.QueryRow(ctx, `SELECT format('ALTER TABLE audit_log ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', $1::text,
		coalesce(quote_literal($2::timestamptz), 'MINVALUE'), coalesce(quote_literal($3::timestamptz), 'MAXVALUE'))`, w.table, orNull(w.From), orNull(w.To)).Scan(&statement)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, statement); err != nil {
		return err
	}
	if w.open() {
		if err := setState(ctx, tx, w, term, "restored", nil, map[string]any{"why": why}); err != nil {
			return err
		}
	}
	return note(ctx, tx, "restore", w, term, w.rows, map[string]any{"why": why})
}

// Restored is what became of a partition that was to be restored.
type Restored struct {
	Bounds
	What string `json:"what"` // restored, or attached: it was, and not on its way out
	Hold *Hold  `json:"hold,omitempty"`
}

// Restore takes a partition back that is on its way out, by its name, and puts its range under a legal hold with the reason, or the next round would
// retire it anew. One that is attached and not on its way out is left as it is. What was dropped is an error that says when.
func Restore(ctx context.Context, db *pgxpool.Pool, name, reason, client string) (Restored, error) {
	restored, err := bringBack(ctx, db, name, reason, func(ctx context.Context, tx pgx.Tx, w way) (*Hold, error) {
		hold, err := placeHold(ctx, tx, Hold{From: w.From, Until: w.To, Reason: reason}, client)
		return &hold, err
	})
	if err != nil {
		return Restored{}, fmt.Errorf("restore partition %s: %w", name, err)
	}
	return restored, nil
}

// bringBack takes a partition back, and does more in the same transaction.
func bringBack(ctx context.Context, db *pgxpool.Pool, name, why string, more func(context.Context, pgx.Tx, way) (*Hold, error)) (Restored, error) {
	var restored Restored
	err := persist(ctx, func() error {
		w, err := lookAt(ctx, db, name)
		if err != nil {
			return err
		}
		if w.Detaching {
			if err := transact(ctx, db, func(tx pgx.Tx) error { return finalizeIn(ctx, tx, w, nil, why) }); err != nil {
				return err
			}
		}
		return transact(ctx, db, func(tx pgx.Tx) (err error) {
			restored, err = takeBack(ctx, tx, name, why, more)
			return err
		})
	})
	return restored, err
}

func takeBack(ctx context.Context, tx pgx.Tx, name, why string, more func(context.Context, pgx.Tx, way) (*Hold, error)) (Restored, error) {
	if err := alone(ctx, tx); err != nil {
		return Restored{}, err
	}
	w, err := lookAt(ctx, tx, name)
	if err != nil {
		return Restored{}, err
	}
	restored := Restored{Bounds: w.Bounds, What: "attached"}
	switch {
	case w.attached && !w.open():
		return restored, nil
	case w.attached && w.state == "requested":
		err = setState(ctx, tx, w, nil, "refused", nil, map[string]any{"why": why})
	case w.attached:
		err = setState(ctx, tx, w, nil, "restored", nil, map[string]any{"why": why})
	case w.oid != 0 && w.event != 0:
		err = attach(ctx, tx, w, nil, why)
	default:
		return Restored{}, absent(ctx, tx, name)
	}
	restored.What = "restored"
	if err == nil && more != nil {
		restored.Hold, err = more(ctx, tx, w)
	}
	return restored, err
}

// absentError says why there is nothing to restore.
type absentError struct{ why string }

func (e *absentError) Error() string { return e.why }

// absent finds out why there is nothing to restore.
func absent(ctx context.Context, tx pgx.Tx, name string) error {
	var at time.Time
	var rows int64
	err := tx.QueryRow(ctx, `
		SELECT updated_at, coalesce(row_count, 0) FROM audit_partition_event WHERE partition_name = $1 AND kind = 'drop' AND state = 'done' ORDER BY id DESC LIMIT 1`, name).Scan(&at, &rows)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return &absentError{"there is no such partition, and none of that name is on its way out"}
	case err != nil:
		return err
	default:
		return &absentError{fmt.Sprintf("it was dropped at %s with %d rows: only a backup has them", at.UTC().Format(time.RFC3339), rows)}
	}
}

// bringBackFor takes back the partitions on their way out, and no longer attached, in whose range one of the times is, and returns them as steps.
func bringBackFor(ctx context.Context, db *pgxpool.Pool, times []time.Time) ([]Step, error) {
	ways, err := look(ctx, db)
	if err != nil {
		return nil, err
	}
	var back []Step
	for _, w := range ways {
		if w.attached && !w.Detaching || w.oid == 0 || w.event == 0 || w.state == "requested" || !w.takes(times) {
			continue
		}
		restored, err := bringBack(ctx, db, w.Name, "a late event", nil)
		if _, absent := errors.AsType[*absentError](err); absent {
			continue // dropped since we looked: the range is free for another
		}
		if err != nil {
			return back, comeBack(w.Name, err)
		}
		if restored.What == "restored" {
			back = append(back, Step{Name: w.Name, From: w.From, To: w.To})
		}
	}
	return back, nil
}

// takes tells whether the UTC day of a time is within the bounds, or a part of it.
func (b Bounds) takes(times []time.Time) bool {
	return !b.Default && slices.ContainsFunc(times, func(t time.Time) bool {
		day := Day.start(t)
		return Day.add(day, 1).After(b.From) && (b.To.IsZero() || day.Before(b.To))
	})
}

// comeBack is the error of what can't be attached again for a late event. Whatever the database says of it, it is of this partition alone: it must not be
// taken for a fault of the settings, which would end every worker that gets the event. The lane waits and tries again.
func comeBack(name string, err error) error {
	if postgres.Classify(err) == postgres.Transient {
		return fmt.Errorf("attach partition %s again for a late event: %w", name, err)
	}
	return fmt.Errorf("partition %s, which was detached since it had expired, can't be attached again for a late event (%s): "+
		"give it the columns of audit_log, if those have changed, or rename it", name, err.Error())
}
