package sink_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"

	"auditsink/internal/event"
	"auditsink/metrics"
	"auditsink/sink"
)

// lanes registers so many lanes and claims them.
func (b *bed) lanes(n int) (claims []sink.Claim) {
	starts := make([]sink.Start, n)
	for i := range starts {
		starts[i].Partition = int32(i)
	}
	require.NoError(b, b.sink.Register(b.Context(), lane.Topic, lane.TopicID, "g", starts))
	for _, start := range starts {
		c, err := b.sink.Claim(b.Context(), sink.Lane{Topic: lane.Topic, TopicID: lane.TopicID, Partition: start.Partition}, "g", "worker")
		require.NoError(b, err)
		claims = append(claims, c)
	}
	return claims
}

// hold begins a transaction that holds up whoever calls hold() on the server.
func (b *bed) hold() pgx.Tx {
	_, err := b.pool.Exec(b.Context(), `CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END$$`)
	require.NoError(b, err)
	tx, err := b.pool.Begin(b.Context())
	require.NoError(b, err)
	b.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // or the pools never close after a failure
	_, err = tx.Exec(b.Context(), `SELECT pg_advisory_xact_lock(42)`)
	require.NoError(b, err)
	return tx
}

// awaitHeld waits until so many sessions are held up.
func (b *bed) awaitHeld(n int64) {
	b.Helper()
	require.Eventually(b, func() bool {
		return b.number(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted`) == n
	}, 8*time.Second, 5*time.Millisecond)
}

// TestTurns: no more batches send their rows at once than there are turns, and those that wait hold no connection.
func TestTurns(t *testing.T) {
	onBoth(t, func(b *bed) {
		pool := b.open(b.url)
		s := sink.New(pool, 2, event.Rules{MaxBytes: 1 << 20, Horizon: horizon}, b.ensure, metrics.New("test", event.Reasons()), zaptest.NewLogger(b))
		holder := b.hold()
		_, err := b.pool.Exec(b.Context(), `CREATE TRIGGER hold BEFORE INSERT ON audit_log EXECUTE FUNCTION hold()`)
		require.NoError(b, err)

		claims := b.lanes(5)
		results := make(chan error, len(claims))
		for _, c := range claims {
			go func() {
				_, err := s.Append(b.Context(), batch(c, 10))
				results <- err
			}()
		}
		b.awaitHeld(2)
		time.Sleep(200 * time.Millisecond) // in which a third one would come
		b.awaitHeld(2)
		require.Equal(b, int32(2), pool.Stat().AcquiredConns())

		require.NoError(b, holder.Rollback(b.Context()))
		for range claims {
			require.NoError(b, <-results)
		}
		require.Equal(b, int64(50), b.number(`SELECT count(*) FROM audit_log`))
	})
}

// TestTurnsEndBeforeCommit: a batch whose COMMIT takes long, and one that can't be stored, keep no other from sending its rows.
func TestTurnsEndBeforeCommit(t *testing.T) {
	onBoth(t, func(b *bed) {
		s := sink.New(b.open(b.url), 1, event.Rules{MaxBytes: 1 << 20, Horizon: horizon}, b.ensure, metrics.New("test", event.Reasons()), zaptest.NewLogger(b))
		claims := b.lanes(3)
		holder := b.hold()
		_, err := b.pool.Exec(b.Context(), fmt.Sprintf(`CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON audit_lane DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW WHEN (NEW.lane_id = %d) EXECUTE FUNCTION hold()`, claims[0].LaneID))
		require.NoError(b, err)

		held := make(chan error, 1)
		go func() {
			_, err := s.Append(b.Context(), batch(claims[0], 10))
			held <- err
		}()
		b.awaitHeld(1)
		ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second) // before the first one's lock_timeout ends its attempt
		defer cancel()
		claims[1].Epoch--
		_, err = s.Append(ctx, batch(claims[1], 10))
		var fenced *sink.FencedError
		require.ErrorAs(b, err, &fenced)
		_, err = s.Append(ctx, batch(claims[2], 10))
		require.NoError(b, err)
		require.Equal(b, int64(10), b.number(`SELECT count(*) FROM audit_log`), "the first one's COMMIT is still under way")

		require.NoError(b, holder.Rollback(b.Context()))
		require.NoError(b, <-held)
		require.Equal(b, int64(20), b.number(`SELECT count(*) FROM audit_log`))
	})
}

// heldLane is the trigger that calls a function once rows of a lane are in, within their COPY.
func (b *bed) heldLane(function string, lane int32) {
	_, err := b.pool.Exec(b.Context(), fmt.Sprintf(`CREATE TRIGGER held_%[1]d AFTER INSERT ON audit_log FOR EACH ROW WHEN (NEW.lane_id = %[1]d) EXECUTE FUNCTION %[2]s()`, lane, function))
	require.NoError(b, err)
}

// storedMeanwhile requires that a batch is stored, though another's COPY is held up.
func (b *bed) storedMeanwhile(s *sink.Sink, c sink.Claim) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second) // before the other's lock_timeout ends its attempt
	defer cancel()
	_, err := s.Append(ctx, batch(c, 10))
	require.NoError(b, err)
	require.Equal(b, int64(10), b.number(`SELECT count(*) FROM audit_log`))
	b.awaitHeld(1)
}

// TestTurnsAreBounded: a COPY that is held up keeps others waiting for no longer than a turn may last.
func TestTurnsAreBounded(t *testing.T) {
	sink.SetTurnLimit(t, 100*time.Millisecond)
	onBoth(t, func(b *bed) {
		s := sink.New(b.open(b.url), 1, event.Rules{MaxBytes: 1 << 20, Horizon: horizon}, b.ensure, metrics.New("test", event.Reasons()), zaptest.NewLogger(b))
		claims := b.lanes(3)
		holder := b.hold()
		b.heldLane("hold", claims[0].LaneID)
		held := make(chan error, 1)
		go func() {
			_, err := s.Append(b.Context(), batch(claims[0], 10))
			held <- err
		}()
		b.awaitHeld(1)
		b.storedMeanwhile(s, claims[1])

		require.NoError(b, holder.Rollback(b.Context()))
		require.NoError(b, <-held)
		_, err := s.Append(b.Context(), batch(claims[2], 10))
		require.NoError(b, err, "as many turns as before")
		require.Equal(b, int64(30), b.number(`SELECT count(*) FROM audit_log`))
	})
}

// TestTurnsApart: a batch that had to wait for a lock in vain leaves its turn to others, and takes one of those apart the next time, of which there are as many.
func TestTurnsApart(t *testing.T) {
	sink.SetTurnLimit(t, time.Hour)
	onBoth(t, func(b *bed) {
		s := sink.New(b.open(b.url), 1, event.Rules{MaxBytes: 1 << 20, Horizon: horizon}, b.ensure, metrics.New("test", event.Reasons()), zaptest.NewLogger(b))
		claims := b.lanes(3)
		holder := b.hold()
		_, err := b.pool.Exec(b.Context(), `CREATE TABLE refusing (); CREATE FUNCTION refuse_or_hold() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
			IF to_regclass('refusing') IS NOT NULL THEN
				PERFORM nextval('refused_' || NEW.lane_id); -- which stays
				RAISE EXCEPTION 'locked' USING ERRCODE = 'lock_not_available';
			END IF;
			PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END$$`)
		require.NoError(b, err)
		held := make(chan error, 2)
		for _, c := range claims[:2] {
			_, err := b.pool.Exec(b.Context(), fmt.Sprintf(`CREATE SEQUENCE refused_%d`, c.LaneID))
			require.NoError(b, err)
			b.heldLane("refuse_or_hold", c.LaneID)
			go func() {
				_, err := s.Append(b.Context(), batch(c, 10))
				held <- err
			}()
		}
		for _, c := range claims[:2] {
			require.Eventually(b, func() bool { return b.number(fmt.Sprintf(`SELECT is_called::int FROM refused_%d`, c.LaneID)) == 1 }, 8*time.Second, time.Millisecond)
		}
		_, err = b.pool.Exec(b.Context(), `DROP TABLE refusing`)
		require.NoError(b, err)
		b.awaitHeld(1)
		b.storedMeanwhile(s, claims[2])
		time.Sleep(200 * time.Millisecond) // in which the other would come too
		b.awaitHeld(1)

		require.NoError(b, holder.Rollback(b.Context()))
		require.NoError(b, <-held)
		require.NoError(b, <-held)
		require.Equal(b, int64(30), b.number(`SELECT count(*) FROM audit_log`))
	})
}
