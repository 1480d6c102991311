package partitions

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/migrations"
)

// short is a lease for tests that wait until it has expired; calm one for those in which it must not, on a busy machine either.
const (
	short = time.Second
	calm  = 3 * time.Second
)

// site is a database, and how replicas get to it.
type site struct {
	db         string // the server's own URL
	url        string
	parameters []string
}

// sites runs a test on the oldest and the newest Postgres, directly and through pgbouncer.
func sites(t *testing.T, test func(t *testing.T, s site)) {
	t.Helper()
	versions(t, func(t *testing.T, db string) {
		t.Run("direct", func(t *testing.T) { test(t, site{db: db, url: db}) })
	})
	versions(t, func(t *testing.T, db string) {
		t.Run("pgbouncer", func(t *testing.T) {
			test(t, site{db: db, url: testkit.OwnPgBouncer(t, db), parameters: []string{"default_query_exec_mode", "exec"}})
		})
	})
}

// connect opens a replica's pool.
func (s site) connect(t *testing.T) *pgxpool.Pool {
	t.Helper()
	return open(t, s.url, s.parameters...)
}

// through returns the site behind a network of its own.
func (s site) through(t *testing.T) (site, *testkit.Proxy) {
	t.Helper()
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	proxy := testkit.OwnProxy(t, u.Host)
	s.url, err = proxy.URL(s.url)
	require.NoError(t, err)
	return s, proxy
}

// replica is a process that takes part in the election, for a test.
type replica struct {
	stop context.CancelFunc // as SIGTERM does
	done chan struct{}
	err  error // what Lead returned, once done

	mu      sync.Mutex // guards what follows
	leading *Term      // nil while it doesn't
	terms   []Term
	ends    []error // of the terms
	trouble []error
}

// replicate starts a replica. work nil waits for the end of the term.
func replicate(t *testing.T, db *pgxpool.Pool, duration time.Duration, work func(context.Context, Term) error) *replica {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &replica{stop: stop, done: make(chan struct{})}
	if work == nil {
		work = untilOver
	}
	go func() {
		defer close(r.done)
		r.err = r.lease(duration).Lead(ctx, db, work)
	}()
	t.Cleanup(r.quit)
	return r
}

func untilOver(ctx context.Context, _ Term) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// lease tells the replica of what it does.
func (r *replica) lease(duration time.Duration) Lease {
	locked := func(f func()) {
		r.mu.Lock()
		defer r.mu.Unlock()
		f()
	}
	return Lease{
		Duration: duration, Holder: "replica",
		Began:   func(term Term) { locked(func() { r.leading, r.terms = &term, append(r.terms, term) }) },
		Ended:   func(_ Term, err error) { locked(func() { r.leading, r.ends = nil, append(r.ends, err) }) },
		Trouble: func(err error) { locked(func() { r.trouble = append(r.trouble, err) }) },
	}
}

// quit is stop, and waits until it has come to its end.
func (r *replica) quit() {
	r.stop()
	<-r.done
}

func (r *replica) term() (t Term) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leading != nil {
		t = *r.leading
	}
	return t
}

func (r *replica) leads() bool { return r.term().Number > 0 }

// ended returns how the nth term of the replica ended.
func (r *replica) ended(t *testing.T, n int) error {
	t.Helper()
	eventually(t, "the term ends", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.ends) > n
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ends[n]
}

func (r *replica) troubles() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.trouble...)
}

// migrated returns a new database with our schema.
func migrated(t *testing.T) string {
	t.Helper()
	db := testkit.Postgres(t, 18)
	_, err := migrations.Apply(t.Context(), db)
	require.NoError(t, err)
	return db
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, testTimeout, testTick, what)
}

// renewals waits until the lease has been renewed n times.
func renewals(t *testing.T, db *pgxpool.Pool, n int) {
	t.Helper()
	last := time.Time{}
	for range n {
		eventually(t, "the lease is renewed", func() bool {
			now := column[time.Time](t, db, `SELECT coalesce(renewed_at, 'epoch') FROM audit_leader`)[0]
			defer func() { last = now }()
			return !now.Equal(last) && !last.IsZero()
		})
	}
}

// oracleTable makes every transaction of the leader confirm its term and then say it where all can see: never a lower one after a higher.
const oracleTable = `CREATE TABLE oracle (term bigint NOT NULL, times bigint NOT NULL); INSERT INTO oracle VALUES (0, 0)`

// obey is the leader's work for the oracle, until the term is over.
func obey(db *pgxpool.Pool, violated *sync.Map) func(context.Context, Term) error {
	return func(ctx context.Context, term Term) error {
		for {
			err := confirmed(ctx, db, term, func(say func(sql string, args ...any) (int64, error)) error {
				n, err := say(`UPDATE oracle SET term = $1, times = times + 1 WHERE term <= $1`, term.Number)
				if err == nil && n == 0 {
					violated.Store(term.Number, true)
				}
				return err
			})
			switch {
			case errors.Is(err, ErrDeposed):
				return err
			case ctx.Err() != nil:
				return context.Cause(ctx)
			}
			sleep(ctx, 5*time.Millisecond)
		}
	}
}

// confirmed does something in a transaction after the term was confirmed. (The maintainer confirms last. Here it is what comes after that must
// not be seen after the next leader's.)
func confirmed(ctx context.Context, db *pgxpool.Pool, term Term, do func(say func(string, ...any) (int64, error)) error) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // it is over, or as good as
	// One whose client was cut off must not hold on to its term.
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = '1s'`); err != nil {
		return err
	}
	if err := term.confirm(ctx, tx); err != nil {
		return err
	}
	err = do(func(sql string, args ...any) (int64, error) {
		tag, err := tx.Exec(ctx, sql, args...)
		return tag.RowsAffected(), err
	})
	if err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// Replicas that come and go, are cut off and come back, and operators who seize the lease: none ever acts after a later leader has.
func TestOneLeadsAtATime(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		watch := open(t, s.db)
		exec(t, watch, oracleTable)
		violated := &sync.Map{}
		far, network := s.through(t)
		join := func(s site) *replica {
			pool := s.connect(t)
			return replicate(t, pool, short, obey(pool, violated))
		}
		all := []*replica{join(far), join(far), join(s), join(s), join(s)}
		// progress waits until a leader has acted from now on.
		progress := func() {
			acts := func() int64 { return column[int64](t, watch, `SELECT times FROM oracle`)[0] }
			before := acts()
			eventually(t, "somebody leads and acts", func() bool { return acts() > before+3 })
		}
		progress()
		for range 3 {
			network.CutOff()
			progress()
			all[2].quit()
			all = append(append(all[:2:2], all[3:]...), join(s))
			progress()
			network.Heal()
			pool := s.connect(t)
			err := (&replica{}).lease(short).Seize(t.Context(), pool, func(ctx context.Context, term Term) error {
				soon, enough := context.WithTimeout(ctx, short/2)
				defer enough()
				return obey(pool, violated)(soon, term)
			})
			require.ErrorIs(t, err, context.DeadlineExceeded)
			progress()
		}
		for _, r := range all {
			r.quit()
		}
		violated.Range(func(term, _ any) bool {
			t.Errorf("term %d acted after a later one", term)
			return true
		})
		require.Greater(t, column[int64](t, watch, `SELECT term FROM audit_leader`)[0], int64(4))
	})
}

// The lease is far longer than the test waits, so it is the hand-over that lets the next one begin.
func TestHandOver(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		watch := open(t, s.db)
		var tidied atomic.Bool
		first := replicate(t, s.connect(t), time.Hour, func(ctx context.Context, _ Term) error {
			<-ctx.Done()
			require.Equal(t, []bool{true}, column[bool](t, watch, `SELECT expires_at > clock_timestamp() FROM audit_leader`), "not before work has ended")
			tidied.Store(true)
			return context.Cause(ctx)
		})
		eventually(t, "the first leads", first.leads)
		second := replicate(t, s.connect(t), time.Hour, nil)
		first.quit()
		eventually(t, "the second leads", second.leads)
		require.True(t, tidied.Load())
		require.NoError(t, first.ended(t, 0))
		require.NoError(t, first.err)
		require.Equal(t, first.terms[0].Number+1, second.term().Number)
		require.NotEqual(t, first.terms[0].Holder, second.term().Holder, "they have the same name")
		second.quit()
		require.Equal(t, []bool{true}, column[bool](t, watch, `SELECT holder IS NULL AND expires_at <= clock_timestamp() FROM audit_leader`))
	})
}

// Work that takes its time to come to its end is still the leader's: the lease goes on.
func TestLeaderTidiesUp(t *testing.T) {
	db := migrated(t)
	watch := open(t, db)
	tidied := make(chan struct{})
	first := replicate(t, open(t, db), calm, func(ctx context.Context, _ Term) error {
		<-ctx.Done()
		<-tidied
		return context.Cause(ctx)
	})
	eventually(t, "the first leads", first.leads)
	second := replicate(t, open(t, db), calm, nil)
	first.stop()
	renewals(t, watch, 4)
	require.False(t, second.leads())
	close(tidied)
	eventually(t, "the second leads", second.leads)
	require.NoError(t, first.ended(t, 0))
	require.Equal(t, int64(2), second.term().Number)
}

// Without a word from the leader another one leads when the lease has expired. The old one knows by then, and is a candidate when it is back.
func TestLeaderCutOff(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		far, network := s.through(t)
		var life atomic.Value
		first := replicate(t, far.connect(t), calm, func(ctx context.Context, term Term) error {
			life.CompareAndSwap(nil, ctx)
			return untilOver(ctx, term)
		})
		eventually(t, "the first leads", first.leads)
		own := first.term().own
		second := replicate(t, s.connect(t), calm, func(ctx context.Context, term Term) error {
			if own.left() > 0 {
				t.Error("the first still trusts its lease")
			}
			if life.Load().(context.Context).Err() == nil { //nolint:errcheck // see above
				t.Error("the first still works")
			}
			return untilOver(ctx, term)
		})
		network.CutOff()
		eventually(t, "the second leads", second.leads)
		err := first.ended(t, 0)
		require.ErrorIs(t, err, ErrDeposed)
		require.ErrorIs(t, err, ErrOverdue)
		require.False(t, first.leads())

		network.Heal()
		eventually(t, "it hears of the database again", func() bool { all := first.troubles(); return len(all) > 1 && all[len(all)-1] == nil })
		term := second.term().Number
		require.Equal(t, int64(2), term, "its coming back disturbs nobody")
		second.quit()
		eventually(t, "the first leads again", first.leads)
		require.Equal(t, term+1, first.term().Number)
	})
}

// With the database away for longer than the lease nobody leads; each tells of it once.
func TestDatabaseAway(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	db, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	_, err = migrations.Apply(t.Context(), db)
	require.NoError(t, err)
	one, two := replicate(t, open(t, db), calm, nil), replicate(t, open(t, db), calm, nil)
	eventually(t, "one leads", func() bool { return one.leads() != two.leads() })
	leader, other := one, two
	if two.leads() {
		leader, other = two, one
	}
	require.NoError(t, server.Stop())
	require.ErrorIs(t, leader.ended(t, 0), ErrOverdue)
	for _, r := range []*replica{leader, other} {
		eventually(t, "it tells of the trouble", func() bool { return len(r.troubles()) > 0 })
	}
	require.NoError(t, server.Restart(t.Context()))
	eventually(t, "one leads", func() bool { return one.leads() != two.leads() })
	for _, r := range []*replica{leader, other} {
		eventually(t, "it tells of its end", func() bool { all := r.troubles(); return all[len(all)-1] == nil })
		require.Len(t, r.troubles(), 2)
	}
	require.Equal(t, int64(2), max(one.term().Number, two.term().Number))
}

// Nobody takes over from a transaction that has confirmed its term, and none does that after a takeover.
func TestTakeoverAndTransactions(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		watch := open(t, s.db)
		exec(t, watch, `CREATE TABLE done (what text)`)
		pool := s.connect(t)
		leader := replicate(t, pool, time.Minute, nil)
		eventually(t, "it leads", leader.leads)
		term := leader.term()

		tx := begin(t, pool)
		exec(t, tx, `INSERT INTO done VALUES ('confirmed')`)
		require.NoError(t, term.confirm(t.Context(), tx))
		operator := make(chan []string, 1)
		over := make(chan error, 1)
		ctx, enough := context.WithCancel(t.Context())
		go func() {
			over <- (&replica{}).lease(time.Minute).Seize(ctx, s.connect(t), func(ctx context.Context, _ Term) error {
				found := []string(nil)
				rows, err := watch.Query(ctx, `SELECT what FROM done`)
				if err == nil {
					found, err = pgx.CollectRows(rows, pgx.RowTo[string])
				}
				operator <- found
				<-ctx.Done()
				return err
			})
		}()
		eventually(t, "the takeover waits for the transaction", func() bool {
			return column[bool](t, watch, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%UPDATE audit_leader%')`)[0]
		})
		late := begin(t, pool)
		exec(t, late, `INSERT INTO done VALUES ('late')`)
		require.Empty(t, operator)
		require.NoError(t, tx.Commit(t.Context()))
		require.Equal(t, []string{"confirmed"}, <-operator)

		require.ErrorIs(t, term.confirm(t.Context(), late), ErrDeposed)
		require.ErrorIs(t, term.check(t.Context(), pool), ErrDeposed)
		enough()
		require.NoError(t, <-over)
		// It hears of it with its next renewal only, far from now.
		require.Equal(t, term.Number, leader.term().Number)
	})
}

// A transaction that is frozen after it confirmed its term holds up the takeover only until the server ends it.
func TestTakeoverFromAFrozenTransaction(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		exec(t, pool, `UPDATE audit_leader SET term = 7, holder = 'frozen'`) // and it has expired
		frozen := begin(t, pool)
		exec(t, frozen, `SET LOCAL idle_in_transaction_session_timeout = '3s'`)
		require.NoError(t, Term{Number: 7, Holder: "frozen"}.confirm(t.Context(), frozen))
		next := replicate(t, pool, short, nil)
		eventually(t, "another leads", next.leads)
		require.Equal(t, int64(8), next.term().Number)
		require.Error(t, frozen.Commit(t.Context()))
	})
}

// The database's clock, set forward, lets another begin while the first still trusts its lease: then the term decides.
func TestDatabaseClockSetForward(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		first := replicate(t, pool, 9*time.Second, nil)
		eventually(t, "the first leads", first.leads)
		term := first.term()
		second := replicate(t, pool, 9*time.Second, nil)
		exec(t, pool, `UPDATE audit_leader SET expires_at = expires_at - interval '1 year', renewed_at = renewed_at - interval '1 year'`)
		eventually(t, "the second leads", second.leads)
		require.True(t, first.leads(), "two at once: the first can't know")
		require.Positive(t, term.own.left())
		tx := begin(t, pool)
		require.ErrorIs(t, term.confirm(t.Context(), tx), ErrDeposed)
		tx = begin(t, pool)
		require.NoError(t, second.term().confirm(t.Context(), tx))
		require.NoError(t, tx.Rollback(t.Context()))
		err := first.ended(t, 0)
		require.ErrorIs(t, err, ErrDeposed, "its renewal is refused")
		require.NotErrorIs(t, err, ErrOverdue)
	})
}

// The database's clock, set back, makes a lease end in a year. Its holder isn't disturbed; but a dead one's is taken after two leases.
func TestDatabaseClockSetBack(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		const setBack = `UPDATE audit_leader SET expires_at = expires_at + interval '1 year', renewed_at = renewed_at + interval '1 year'`
		pool := open(t, db, "pool_max_conns", "10")
		leader, other := replicate(t, pool, calm, nil), (*replica)(nil)
		eventually(t, "it leads", leader.leads)
		other = replicate(t, pool, calm, nil)
		exec(t, pool, setBack)
		renewals(t, pool, 4)
		require.Equal(t, int64(1), leader.term().Number)
		require.False(t, other.leads())

		exec(t, pool, `UPDATE audit_leader SET term = 5, holder = 'dead', renewed_at = clock_timestamp(), expires_at = clock_timestamp() + interval '1 second'; `+setBack)
		eventually(t, "one leads", func() bool { return leader.term().Number == 6 || other.term().Number == 6 })
		require.NotEqual(t, leader.leads(), other.leads())
	})
}

// A renewal counts from before it was sent: the database may have counted from then.
func TestRenewalAnsweredLate(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		// Without a question about the statement's types before it.
		far, network := site{db: db, url: db, parameters: []string{"default_query_exec_mode", "exec"}}.through(t)
		watch := open(t, db)
		e := Lease{Duration: time.Minute, Holder: "far"}.enter(far.connect(t))
		defer e.leave(t.Context())
		late := func(ask func() error) (executed time.Time) {
			before := column[time.Time](t, watch, `SELECT coalesce(renewed_at, 'epoch') FROM audit_leader`)[0]
			answered := make(chan error, 1)
			network.Silence(testkit.ToClient)
			go func() { answered <- ask() }()
			eventually(t, "the database has done it", func() bool {
				return column[time.Time](t, watch, `SELECT coalesce(renewed_at, 'epoch') FROM audit_leader`)[0].After(before)
			})
			executed = time.Now()
			network.Heal()
			require.NoError(t, <-answered)
			return executed
		}
		_, err := e.look(t.Context()) // connects
		require.NoError(t, err)
		var term Term
		until := func() time.Time { return time.Now().Add(term.own.left()) }
		executed := late(func() (err error) { term, err = e.seize(t.Context()); return err })
		require.False(t, until().After(executed.Add(e.trust())))
		executed = late(func() error { return e.renew(t.Context(), term) })
		require.False(t, until().After(executed.Add(e.trust())))
		require.True(t, until().After(executed.Add(e.trust()/2)), "but it counts")
	})
}

// A slow network costs no term, as long as answers come in time.
func TestSlowRenewals(t *testing.T) {
	db := migrated(t)
	far, network := site{db: db, url: db}.through(t)
	leader := replicate(t, far.connect(t), 4*time.Second, nil)
	eventually(t, "it leads", leader.leads)
	network.Latency(200*time.Millisecond, 100*time.Millisecond)
	renewals(t, open(t, far.db), 2)
	require.Equal(t, int64(1), leader.term().Number)
}

// What arrives after its time changes nothing: no takeover, no renewal.
func TestLateRequests(t *testing.T) {
	sites(t, func(t *testing.T, s site) {
		pool := s.connect(t)
		enter := func() *election {
			e := Lease{Duration: time.Minute, Holder: "one"}.enter(pool)
			t.Cleanup(func() { e.leave(t.Context()) })
			return e
		}
		row := func() string {
			return column[string](t, pool, `SELECT concat_ws(' ', term, holder, expires_at > clock_timestamp()) FROM audit_leader`)[0]
		}
		one, two := enter(), enter()
		seen, err := one.look(t.Context())
		require.NoError(t, err)
		require.True(t, seen.free)
		term, err := two.take(t.Context(), seen)
		require.NoError(t, err)
		require.Equal(t, int64(1), term.Number)
		require.Equal(t, column[time.Time](t, pool, `SELECT acquired_at FROM audit_leader`)[0].UTC(), term.Since.UTC())
		none, err := one.take(t.Context(), seen)
		require.NoError(t, err)
		require.Zero(t, none)

		// Nor of the same replica, whose first request was the late one.
		none, err = two.take(t.Context(), seen)
		require.NoError(t, err)
		require.Zero(t, none)
		require.Equal(t, "1 "+two.holder+" t", row())
		// It sees a lease that it doesn't know of: an answer was lost.
		seen, err = two.look(t.Context())
		require.NoError(t, err)
		require.True(t, seen.free)
		taken, err := one.look(t.Context())
		require.NoError(t, err)
		require.False(t, taken.free)

		// Renewed in between, by a leader that had given up hope of an answer.
		require.NoError(t, two.renew(t.Context(), term))
		none, err = one.take(t.Context(), taken)
		require.NoError(t, err)
		require.Zero(t, none)

		two.resign(t.Context(), term)
		require.ErrorIs(t, two.renew(t.Context(), term), ErrDeposed)
		require.Equal(t, "1 f", row())
		next, err := one.seize(t.Context())
		require.NoError(t, err)
		require.Equal(t, int64(2), next.Number)
		require.ErrorIs(t, two.renew(t.Context(), term), ErrDeposed)
		two.resign(t.Context(), term)
		require.Equal(t, "2 "+one.holder+" t", row())
	})
}

// Work that keeps every connection of the pool for itself doesn't keep the lease from being renewed.
func TestBusyPool(t *testing.T) {
	db := migrated(t)
	pool := open(t, db, "pool_max_conns", "1")
	leader := replicate(t, pool, calm, func(ctx context.Context, _ Term) error {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		<-ctx.Done()
		return context.Cause(ctx)
	})
	eventually(t, "it leads", leader.leads)
	renewals(t, open(t, db), 4)
	require.Equal(t, int64(1), leader.term().Number)
	leader.quit()
	require.NoError(t, leader.ended(t, 0))
}

// Work that returns by itself ends the election for its replica; the lease is handed over.
func TestWorkReturns(t *testing.T) {
	pool := open(t, migrated(t))
	for _, want := range []error{errors.New("broken"), nil} {
		work := func(context.Context, Term) error { return want }
		require.Equal(t, want, (&replica{}).lease(time.Hour).Lead(t.Context(), pool, work))
		require.Equal(t, want, (&replica{}).lease(time.Hour).Seize(t.Context(), pool, work))
		require.Equal(t, []bool{true}, column[bool](t, pool, `SELECT holder IS NULL AND expires_at <= clock_timestamp() FROM audit_leader`))
	}
}

// Of two who seize the lease the first is told.
func TestSeizeTwice(t *testing.T) {
	pool := open(t, migrated(t))
	began, first := make(chan struct{}), make(chan error, 1)
	go func() {
		first <- (&replica{}).lease(short).Seize(t.Context(), pool, func(ctx context.Context, term Term) error {
			close(began)
			return untilOver(ctx, term)
		})
	}()
	<-began
	bounded, enough := context.WithTimeout(t.Context(), testTimeout)
	defer enough()
	require.NoError(t, (&replica{}).lease(short).Seize(bounded, pool, func(ctx context.Context, _ Term) error {
		select {
		case err := <-first:
			require.ErrorIs(t, err, ErrDeposed)
			require.NotErrorIs(t, err, ErrOverdue)
			return nil
		case <-ctx.Done():
			return errors.New("the first was not told")
		}
	}))
}

// A process that goes on after it was frozen confirms nothing, even before its timers have run.
func TestTermKnowsItsEnd(t *testing.T) {
	pool := open(t, migrated(t))
	e := Lease{Duration: time.Minute, Holder: "frozen"}.enter(pool)
	defer e.leave(t.Context())
	term, err := e.seize(t.Context())
	require.NoError(t, err)
	require.NoError(t, term.check(t.Context(), pool))
	term.own.extend(time.Now().Add(-time.Hour), e.trust())
	require.ErrorIs(t, term.check(t.Context(), pool), ErrOverdue)
	require.ErrorIs(t, term.confirm(t.Context(), begin(t, pool)), ErrDeposed)
}
