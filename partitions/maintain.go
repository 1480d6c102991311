package partitions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Maintenance is the leader's work on the partitions.
type Maintenance struct {
	DB        *pgxpool.Pool
	Schedule  Schedule
	Retention Retention
	Now       func() time.Time // this process's clock
	// Changed is called when rows of audit_log may have gone or come back, before what follows takes its time; nil for nobody.
	Changed func(context.Context)
}

// Round does once whatever is due by now, and returns what it did, in order: a [Step], [Action] or [Care] each. What one part of it can't do keeps
// none of the others from their work; the error joins what went wrong, and the next round tries again. It ends at once with [ErrDeposed] where the term is over.
func (m Maintenance) Round(ctx context.Context, term Term) ([]fmt.Stringer, error) {
	done, err := m.Change(ctx, term)
	if errors.Is(err, ErrDeposed) || ctx.Err() != nil {
		return done, err
	}
	cared, upkeep := strung(Upkeep(ctx, m.DB, term, m.Now()))
	if upkeep != nil {
		upkeep = fmt.Errorf("look after ended partitions: %w", upkeep)
	}
	return append(done, cared...), errors.Join(err, upkeep)
}

// Change is the part of a round that creates and removes, and leaves out the upkeep of what there is.
func (m Maintenance) Change(ctx context.Context, term Term) ([]fmt.Stringer, error) {
	now := m.Now()
	var done []fmt.Stringer
	var failed []error
	for _, part := range []struct {
		name string
		do   func() ([]fmt.Stringer, error)
		rows bool // whether it removes some, or brings some back
	}{
		// Creation first: nothing that follows matters as much.
		{"create partitions", func() ([]fmt.Stringer, error) { return strung(Ensure(ctx, m.DB, now, m.Schedule)) }, false},
		{"make way for shorter partitions", func() ([]fmt.Stringer, error) { return m.makeWay(ctx, term, now) }, false},
		{"retire partitions", func() ([]fmt.Stringer, error) { return strung(Retire(ctx, m.DB, term, now, m.Retention)) }, true},
		{"remove expired rows", func() ([]fmt.Stringer, error) { return strung(Expire(ctx, m.DB, term, now, m.Retention)) }, true},
	} {
		did, err := part.do()
		done = append(done, did...)
		if part.rows && m.Changed != nil && (err != nil || slices.ContainsFunc(did, changesRows)) {
			m.Changed(ctx) // also after an error, which may have come after a part of it was done
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", part.name, err))
		}
		if errors.Is(err, ErrDeposed) || ctx.Err() != nil {
			break
		}
	}
	return done, errors.Join(failed...)
}

// changesRows tells whether there are other rows in audit_log after something was done.
func changesRows(did fmt.Stringer) bool {
	action, ok := did.(Action)
	return ok && !slices.Contains([]string{"verified", "refused", "waits"}, action.What)
}

// makeWay removes the empty future partitions that are longer than the interval, and creates what is missing then.
func (m Maintenance) makeWay(ctx context.Context, term Term, now time.Time) ([]fmt.Stringer, error) {
	existing, err := List(ctx, m.DB)
	if err != nil {
		return nil, err
	}
	superseded := Superseded(now, existing, m.Schedule)
	if len(superseded) == 0 {
		return nil, nil
	}
	done, err := strung(RemoveEmpty(ctx, m.DB, term, superseded, fmt.Sprintf("partitions are to be of a %s", m.Schedule.Interval)))
	if err != nil {
		return done, err
	}
	created, err := strung(Ensure(ctx, m.DB, now, m.Schedule))
	return append(done, created...), err
}

func strung[T fmt.Stringer](did []T, err error) ([]fmt.Stringer, error) {
	all := make([]fmt.Stringer, len(did))
	for i, d := range did {
		all[i] = d
	}
	return all, err
}
