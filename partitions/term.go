package partitions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrDeposed means that another leader has taken over: what was under way is rolled back, or will be finished by that one.
var ErrDeposed = errors.New("another leader has taken over")

// Term is one holder's time as the leader. Terms are counted by the database: of any two, the higher one rules.
type Term struct {
	Number int64
	Holder string
	Since  time.Time // by the database's clock

	own *tenure // nil where this process doesn't hold the lease
}

// confirm must be the last statement of a transaction that only the leader may carry out. Until its end nobody can take over: a leader
// that was frozen, or whose lease ran out, rolls back with [ErrDeposed] instead of doing what its successor may have done already. The
// transaction must have the limits of package partitions, or one whose client is gone without a word keeps others from taking over for ever.
func (t Term) confirm(ctx context.Context, tx pgx.Tx) error {
	return t.ask(ctx, tx, `SELECT FROM audit_leader WHERE term = $1 AND holder = $2 FOR SHARE`)
}

// check tells whether the term still lasts, around statements that can't run in a transaction. Such a statement may come late all the
// same, so it must be harmless to repeat.
func (t Term) check(ctx context.Context, db querier) error {
	return t.ask(ctx, db, `SELECT FROM audit_leader WHERE term = $1 AND holder = $2`)
}

// Maintained puts on record that a round of the leader ended without an error, or returns [ErrDeposed] where the term is over.
func (t Term) Maintained(ctx context.Context, db *pgxpool.Pool) error {
	tag, err := db.Exec(ctx, `UPDATE audit_leader SET maintained_at = clock_timestamp() WHERE term = $1 AND holder = $2`, t.Number, t.Holder)
	switch {
	case err != nil:
		return fmt.Errorf("put the round of maintenance on record: %w", err)
	case tag.RowsAffected() == 0:
		return ErrDeposed
	}
	return nil
}

func (t Term) ask(ctx context.Context, db querier, sql string) error {
	// A process that was frozen goes on before its timers do.
	if t.own != nil && t.own.left() <= 0 {
		return errOverdue
	}
	rows, err := db.Query(ctx, sql, t.Number, t.Holder)
	if err == nil {
		lasts := rows.Next()
		rows.Close()
		if err = rows.Err(); err == nil && !lasts {
			return ErrDeposed
		}
	}
	if err != nil {
		return fmt.Errorf("confirm term %d: %w", t.Number, err)
	}
	return nil
}
