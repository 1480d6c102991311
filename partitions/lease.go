package partitions

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Lease is how one replica takes part in the election of the leader.
//
// The lease is the row of audit_leader. A candidate looks at it about once a second, and takes it where the database's clock says that it has expired.
// The holder renews it three times as often as it would expire. It trusts it by its own monotonic clock, for less than that time, and counted from before
// the request was sent: whatever network, pooler or locks did to the request, the holder gives up before others may begin. Where that fails (a
// suspended machine, whose monotonic clock stood still; the database's clock set forward) two lead at once, and the term decides: see [Term].
//
// With the database's clock set back, the lease of a dead holder would last for as long. So one that a candidate has seen unchanged for two leases
// of its own, by its own monotonic clock, is free as well.
//
// Nothing here needs a session, so it works through a pooler in transaction mode.
type Lease struct {
	// Duration is after how long without news from the holder another may lead.
	Duration time.Duration
	// Holder names the replica in the table and in logs. Two of one name don't mix.
	Holder string
	// Began and Ended are told of each term of this replica; Ended also why it ended: nil when it was asked to, or had nothing more to do.
	Began func(Term)
	Ended func(Term, error)
	// Trouble is told of an error of the database at the lease, not of further ones of its class, and with nil when the next statement succeeded.
	Trouble func(error)
}

// ErrOverdue is wrapped, with [ErrDeposed], where the lease could not be renewed in time: another may lead by now.
var ErrOverdue = errors.New("the lease was not renewed in time")

// errOverdue is the cause that work's context ends with.
var errOverdue = fmt.Errorf("%w: %w", ErrOverdue, ErrDeposed)

// resignPatience bounds the last words of a leader. Without them the next one begins when the lease has expired.
const resignPatience = 2 * time.Second

// Lead takes part in the election until ctx ends, and does the work whenever this replica leads. Errors of the database it lives through.
//
// The context of work ends with ctx, or with the cause [ErrDeposed] when the term is over. Lead then waits for work to return; the lease goes on
// being renewed until it has, so that nobody begins while it tidies up. At the end of ctx, or when work returns by itself, the
// lease is handed over: another replica leads within about a second. Lead returns the error of a work that returned by itself.
//
// It uses a connection of its own, beside those of db, so that the lease is renewed however busy db is.
func (l Lease) Lead(ctx context.Context, db *pgxpool.Pool, work func(ctx context.Context, term Term) error) error {
	e := l.enter(db)
	defer e.leave(ctx)
	for {
		term, err := e.win(ctx)
		if err != nil {
			return nil
		}
		if err := e.reign(ctx, term, work); !errors.Is(err, ErrDeposed) {
			return err
		}
	}
}

// Seize takes the lease over from whoever has it, does the work, and hands it over again: for an operator's command. The leader of until then hears of
// it when it confirms its term or renews the lease. Context and end of work are as with [Lease.Lead]; there is only this one term, so that the
// error is [ErrDeposed] where somebody else seized the lease in turn, or the database was away for longer than the lease.
func (l Lease) Seize(ctx context.Context, db *pgxpool.Pool, work func(ctx context.Context, term Term) error) error {
	e := l.enter(db)
	defer e.leave(ctx)
	attempt, cancel := context.WithTimeout(ctx, min(l.Duration, time.Minute))
	defer cancel()
	term, err := e.seize(attempt)
	if err != nil {
		return err
	}
	return e.reign(ctx, term, work)
}

// win returns when the lease is ours, or with an error when ctx has ended.
func (e *election) win(ctx context.Context) (Term, error) {
	var last sighting
	for {
		pause := jitter(min(time.Second, e.Duration/3))
		attempt, cancel := context.WithTimeout(ctx, e.patience())
		term, err := e.stand(attempt, &last)
		cancel()
		switch {
		case ctx.Err() != nil:
			return Term{}, context.Cause(ctx)
		case err != nil:
			pause = e.backoff.NextBackOff()
		case term.own != nil && term.own.left() > 0:
			return term, nil
		}
		if !sleep(ctx, pause) {
			return Term{}, context.Cause(ctx)
		}
	}
}

// stand takes the lease if it is free. Otherwise the term is the zero one.
func (e *election) stand(ctx context.Context, last *sighting) (Term, error) {
	seen, err := e.look(ctx)
	if err != nil {
		return Term{}, err
	}
	if !seen.same(*last) {
		*last = seen
	}
	if !seen.free && time.Since(last.at) < 2*e.Duration {
		return Term{}, nil
	}
	return e.take(ctx, seen)
}

// reign does the work for as long as the term lasts, and resigns. The error is ErrDeposed where the term ended otherwise.
func (e *election) reign(ctx context.Context, term Term, work func(context.Context, Term) error) error {
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	// Renewing doesn't end with ctx: work has to come to its end first.
	renewing, enough := context.WithCancel(context.WithoutCancel(ctx))
	defer enough()
	overdue := time.AfterFunc(term.own.left(), func() { end(errOverdue) })
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		if err := e.keep(renewing, term, overdue); err != nil {
			end(err)
		}
	}()

	if e.Began != nil {
		e.Began(term)
	}
	err := work(life, term)
	enough()
	<-renewed
	overdue.Stop()

	deposed := context.Cause(life)
	if errors.Is(err, ErrDeposed) { // work heard of it before the next renewal
		deposed = err
	}
	if errors.Is(deposed, ErrDeposed) {
		err = deposed
	} else {
		if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
			err = nil // it was told to end
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(resignPatience, e.Duration))
		defer cancel()
		e.resign(last, term)
	}
	if e.Ended != nil {
		e.Ended(term, err)
	}
	return err
}

// keep renews the lease until ctx ends, and returns an error when it is lost.
func (e *election) keep(ctx context.Context, term Term, overdue *time.Timer) error {
	const often = 3 // see Lease
	for next := e.Duration / often; sleep(ctx, next); {
		left := term.own.left()
		if left <= 0 {
			return errOverdue
		}
		attempt, cancel := context.WithTimeout(ctx, min(left, e.patience()))
		err := e.renew(attempt, term)
		cancel()
		switch {
		case errors.Is(err, ErrDeposed):
			return err
		case err != nil:
			next = e.backoff.NextBackOff()
		default:
			overdue.Reset(term.own.left())
			next = e.Duration / often
		}
	}
	return nil
}

// trust is for how long the holder takes the lease for its own. The difference is for clocks that don't run at quite the same rate.
func (l Lease) trust() time.Duration { return l.Duration - l.Duration/10 }

// patience is how long an answer is waited for: where a connection is dead without a word, there must be time in a lease for others.
func (l Lease) patience() time.Duration { return min(l.Duration/4, 10*time.Second) }

// tenure is until when the holder trusts its lease, by the monotonic clock of this process.
type tenure struct {
	start time.Time
	until atomic.Int64 // nanoseconds after start
}

func newTenure(sent time.Time, trust time.Duration) *tenure {
	t := &tenure{start: sent}
	t.extend(sent, trust)
	return t
}

// extend counts from before the request was sent: the database counts from later.
func (t *tenure) extend(sent time.Time, trust time.Duration) {
	t.until.Store(int64(sent.Sub(t.start) + trust))
}

func (t *tenure) left() time.Duration { return time.Duration(t.until.Load()) - time.Since(t.start) }

// sleep returns false when ctx ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// jitter is d, give or take a quarter, so that replicas don't all ask at once.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2)) //nolint:gosec // a pause, not a secret
}
