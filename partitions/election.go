package partitions

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/postgres"
)

// election is one replica's part in it: the statements, and the connection they go over. It is for one goroutine at a time.
type election struct {
	Lease
	holder  string // unlike any other, also that of an earlier process of the same name
	config  *pgx.ConnConfig
	conn    *pgx.Conn // nil, or closed, while there is none
	backoff *backoff.ExponentialBackOff
	trouble postgres.Class // of the last error; 0 while all is well
}

func (l Lease) enter(db *pgxpool.Pool) *election {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = l.Duration/30, min(l.Duration/3, 5*time.Second)
	return &election{Lease: l, holder: l.Holder + "/" + rand.Text()[:8], config: db.Config().ConnConfig, backoff: pause}
}

func (e *election) leave(ctx context.Context) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	e.disconnect(bounded)
}

// sighting is the lease as a candidate saw it.
type sighting struct {
	term    int64
	renewed *time.Time // by the database's clock; nil if nobody has ever held it
	free    bool
	at      time.Time // by our clock, after the answer
}

// same tells whether the lease was neither renewed nor taken in between.
func (s sighting) same(other sighting) bool {
	return s.term == other.term && !other.at.IsZero() &&
		(s.renewed == nil) == (other.renewed == nil) && (s.renewed == nil || s.renewed.Equal(*other.renewed))
}

// look reads the lease. It is free where it has expired, and where we hold it and don't know: a request of ours was not answered, or
// answered too late.
func (e *election) look(ctx context.Context) (sighting, error) {
	var s sighting
	err := e.ask(ctx, "look at the lease", func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			SELECT term, renewed_at, expires_at <= clock_timestamp() OR holder IS NOT DISTINCT FROM $1
			FROM audit_leader`, e.holder).Scan(&s.term, &s.renewed, &s.free)
	})
	s.at = time.Now()
	return s, err
}

// take takes the lease if it is as it was seen: a request that comes late, or second, changes nothing. It returns the zero Term then.
func (e *election) take(ctx context.Context, seen sighting) (Term, error) {
	return e.acquire(ctx, `term = $3 AND renewed_at IS NOT DISTINCT FROM $4`, seen.term, seen.renewed)
}

// seize takes the lease whoever holds it.
func (e *election) seize(ctx context.Context) (Term, error) { return e.acquire(ctx, `true`) }

// acquire begins a term. It waits for transactions that have confirmed the term before.
func (e *election) acquire(ctx context.Context, condition string, args ...any) (Term, error) {
	term := Term{Holder: e.holder}
	taken := false
	err := e.ask(ctx, "take the lease", func(conn *pgx.Conn) error {
		term.own = newTenure(time.Now(), e.trust())
		rows, err := conn.Query(ctx, `
			UPDATE audit_leader SET term = term + 1, holder = $1, acquired_at = clock_timestamp(),
				renewed_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => $2)
			WHERE `+condition+` RETURNING term, acquired_at`, append([]any{e.holder, e.Duration.Seconds()}, args...)...)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, []any{&term.Number, &term.Since}, func() error { taken = true; return nil })
		return err
	})
	if err != nil || !taken {
		return Term{}, err
	}
	return term, nil
}

// renew extends the lease, or returns ErrDeposed where the term is over. It doesn't matter whether the lease has expired, if nobody took it.
func (e *election) renew(ctx context.Context, term Term) error {
	return e.ask(ctx, "renew the lease", func(conn *pgx.Conn) error {
		sent := time.Now()
		tag, err := conn.Exec(ctx, `
			UPDATE audit_leader SET renewed_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => $3)
			WHERE term = $1 AND holder = $2`, term.Number, term.Holder, e.Duration.Seconds())
		switch {
		case err != nil:
			return err
		case tag.RowsAffected() == 0:
			return ErrDeposed
		}
		term.own.extend(sent, e.trust())
		return nil
	})
}

// resign ends a term of ours. Without a holder, a renewal that is still on its way comes too late. An error goes to Trouble: it only means that the
// others wait for the lease to expire.
func (e *election) resign(ctx context.Context, term Term) {
	_ = e.ask(ctx, "hand the lease over", func(conn *pgx.Conn) error { // Trouble knows
		_, err := conn.Exec(ctx, `
			UPDATE audit_leader SET holder = NULL, renewed_at = clock_timestamp(), expires_at = 'epoch'
			WHERE term = $1 AND holder = $2`, term.Number, term.Holder)
		return err
	})
}

// ask runs one statement, on a new connection if there is none. An error costs the connection: it may be dead without a word, or lead to what
// is the primary no longer.
func (e *election) ask(ctx context.Context, what string, statement func(*pgx.Conn) error) error {
	err := e.connect(ctx)
	if err == nil {
		err = statement(e.conn)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	switch {
	case err == nil || errors.Is(err, ErrDeposed):
		e.backoff.Reset()
		e.report(0, nil)
	case errors.Is(ctx.Err(), context.Canceled): // it was us who gave up
		e.disconnect(ctx)
	default:
		e.disconnect(ctx)
		e.report(postgres.Classify(err), err)
	}
	return err
}

// report tells of a change for the worse or the better.
func (e *election) report(class postgres.Class, err error) {
	if class == e.trouble {
		return
	}
	e.trouble = class
	if e.Trouble != nil {
		e.Trouble(err)
	}
}

func (e *election) connect(ctx context.Context) (err error) {
	if e.conn == nil || e.conn.IsClosed() {
		e.conn, err = pgx.ConnectConfig(ctx, e.config.Copy())
	}
	return err
}

func (e *election) disconnect(ctx context.Context) {
	if e.conn != nil {
		_ = e.conn.Close(ctx) // there is nothing to be saved
		e.conn = nil
	}
}
