package partitions

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Treatment is an ANALYZE or a VACUUM of one partition for a reason other than those of [Upkeep], with its begin and its end on a record of the caller's.
type Treatment struct {
	Partition string
	Kind      string // analyze or vacuum
	// Begin puts on record that it begins. Where it returns false, nothing is done.
	Begin func(ctx context.Context, tx pgx.Tx) (bool, error)
	// End puts on record how it went; left is why it wasn't done, empty if it was.
	End func(ctx context.Context, tx pgx.Tx, left string) error
}

// Treat carries it out as the leader, the way [Upkeep] does: throttled, bounded in time, and without waiting for locks. VACUUM gives no pages back to the
// system, which would lock out readers. The term is confirmed with the begin and with the end: a leader that was deposed begins nothing, and says of
// nothing that it was done. Care.Left is why it wasn't done; of an error the record has no more than its SQLSTATE.
func Treat(ctx context.Context, db *pgxpool.Pool, term Term, t Treatment) (Care, error) {
	d := &due{Care: Care{Partition: t.Partition, Kind: t.Kind}}
	u, err := beginUpkeep(ctx, db, term)
	if err != nil {
		return d.Care, err
	}
	defer u.end(ctx)
	begun := false
	err = u.transaction(ctx, func(tx pgx.Tx) (err error) {
		if begun, err = t.Begin(ctx, tx); err != nil || !begun {
			return err
		}
		return term.confirm(ctx, tx)
	})
	if err != nil || !begun {
		d.Left = "another has just done it"
		return d.Care, err
	}
	err = u.left(d, u.treat(ctx, d))
	if errors.Is(err, ErrDeposed) || ctx.Err() != nil || u.session.IsClosed() {
		return d.Care, err // whoever leads next sees that it didn't end
	}
	left := d.Left
	if err != nil {
		left = "it failed"
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
			left = fmt.Sprintf("it failed (SQLSTATE %s)", pg.Code)
		}
	}
	return d.Care, errors.Join(err, u.transaction(ctx, func(tx pgx.Tx) error {
		if err := t.End(ctx, tx, left); err != nil {
			return err
		}
		return term.confirm(ctx, tx)
	}))
}

func (u *upkeep) treat(ctx context.Context, d *due) error {
	table := pgx.Identifier{d.Partition}.Sanitize()
	switch {
	case d.Kind == "analyze":
		return u.transaction(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, upkeepThrottle+`; SET LOCAL statement_timeout = '`+upkeepLasts+`'`); err != nil {
				return err
			}
			// It isn't rolled back where the term is over: that would cost its result, but not what Postgres then believes, that nothing is stale.
			_, err := tx.Exec(ctx, `ANALYZE `+table)
			return err
		})
	case u.pooled:
		d.Left = throughPooler
		return nil
	default:
		return u.bounded(ctx, upkeepLasts, `VACUUM (TRUNCATE false) `+table)
	}
}
