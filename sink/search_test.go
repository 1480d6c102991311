package sink_test

import (
	"context"
	"math/bits"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"auditsink/internal/testkit"
	"auditsink/sink"
)

// counting counts the COPYs into audit_log, also those that are undone, and has one of them meet with a fault.
const counting = `
	CREATE SEQUENCE copies;
	CREATE TABLE fault (copy bigint NOT NULL, doing text NOT NULL);
	CREATE FUNCTION count_copy() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE
		n         bigint := nextval('copies');
		now_doing text   := (SELECT doing FROM fault WHERE copy = n);
	BEGIN
		CASE
			WHEN now_doing = 'terminate' THEN PERFORM pg_terminate_backend(pg_backend_pid());
			WHEN now_doing IS NOT NULL THEN RAISE EXCEPTION 'now' USING ERRCODE = now_doing;
			ELSE
		END CASE;
		RETURN NULL;
	END $$;
	CREATE TRIGGER count_copy BEFORE INSERT ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION count_copy()`

// copies returns how many COPYs into audit_log there were since it was asked last.
func (b *bed) copies() int64 {
	n := b.number(`SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM copies`)
	b.exec(`ALTER SEQUENCE copies RESTART`)
	return n
}

// TestStatementsOfASearch: of n records, each bad one costs two COPYs for each time that n can be halved.
func TestStatementsOfASearch(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		b.exec(counting)
		c := b.claim()
		for _, m := range []struct{ records, bad int }{{1, 1}, {2, 1}, {5000, 0}, {5000, 1}, {3000, 9}} {
			kinds := with(m.records, poison)
			for i := range m.bad {
				kinds[(i*m.records+m.records/2)/m.bad] = poison
			}
			batch := mixed(c, kinds...)
			_, err := b.sink.Append(b.Context(), batch)
			require.NoError(b, err)
			b.sorted(b, batch, kinds)
			copies := b.copies()
			require.LessOrEqual(b, copies, int64(2+2*m.bad*bits.Len(uint(m.records-1))), "%d bad of %d", m.bad, m.records)
			require.Greater(b, copies, int64(m.bad))
			b.Logf("%d bad of %d records: %d COPYs", m.bad, m.records, copies)
			c.Next = batch.To
		}
	})
}

// TestPlainBatchIsFourStatements: what is done for a refused batch costs any other nothing.
func TestPlainBatchIsFourStatements(t *testing.T) {
	for _, version := range []int{15, 18} {
		server := testkit.PostgresServerFor(t, version)
		b := newBed(t, testkit.Postgres(t, version))
		c := b.claim()
		b.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET log_statement = ''all''', current_database()); END $$`)
		s := b.newSink(b.open(b.url)) // whose sessions log their statements
		statements := func(batch *sink.Batch) (all []string) {
			before, err := os.ReadFile(server.LogFile())
			require.NoError(t, err)
			_, err = s.Append(b.Context(), batch)
			require.NoError(t, err)
			after, err := os.ReadFile(server.LogFile())
			require.NoError(t, err)
			for line := range strings.Lines(string(after[len(before):])) {
				_, statement, found := strings.Cut(line, "statement: ")
				if _, prepared, ok := strings.Cut(line, "execute stmtcache_"); ok {
					_, statement, found = strings.Cut(prepared, ": ")
				}
				if found && !strings.HasPrefix(statement, "-- ping") {
					all = append(all, strings.TrimRight(strings.Join(strings.Fields(statement)[:min(2, len(strings.Fields(statement)))], " "), "; "))
				}
			}
			return all
		}
		require.Equal(t, []string{"BEGIN", "COPY audit_log", "UPDATE audit_lane", "COMMIT"}, statements(batch(c, 100)))
		c.Next += 100
		require.Equal(t, []string{"BEGIN", "COPY audit_log", "COPY audit_quarantine", "UPDATE audit_lane", "COMMIT"}, statements(mixed(c, good, junk)))
		c.Next += 2
		b.exec(refusing)
		require.Equal(t, []string{
			"BEGIN", "COPY audit_log", "ROLLBACK", "SELECT epoch,",
			"BEGIN", "SAVEPOINT range", "COPY audit_log", "RELEASE SAVEPOINT", "COPY audit_log", "ROLLBACK TO", "RELEASE SAVEPOINT",
			"COPY audit_quarantine", "UPDATE audit_lane", "COMMIT",
		}, statements(mixed(c, good, poison)))
	}
}

// TestSearchBreaksOff has each COPY of a search in turn meet with a fault: the batch is stored once, and what was found out isn't looked for again.
func TestSearchBreaksOff(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		b.exec(counting)
		kinds := with(12, poison, 0, 6, 7, 11)
		kinds[3], kinds[9] = junk, "later.23000"
		c := b.claim()
		store := func() int64 {
			batch := mixed(c, kinds...)
			_, err := b.quietSink().Append(b.Context(), batch)
			require.NoError(b, err)
			b.sorted(b, batch, kinds)
			c.Next = batch.To
			return b.copies()
		}
		clean := store()
		require.Greater(b, clean, int64(15))
		for at := int64(1); at <= clean; at++ {
			doing := [...]string{"40001", "terminate"}[at%2]
			b.exec(`INSERT INTO fault VALUES ($1, $2)`, at, doing)
			require.LessOrEqual(b, store(), clean+2, "%s at COPY %d", doing, at) // the COPY that failed, and one of all that was sorted out
			b.exec(`DELETE FROM fault`)
		}
	})
}

// TestSearchLongerThanAnAttempt: a search that no single attempt has the time for comes to its end all the same.
func TestSearchLongerThanAnAttempt(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		b.exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END';
			CREATE TRIGGER slow BEFORE INSERT ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION slow()`)
		sink.SetAttemptTimeout(b.T, time.Second)
		kinds := with(64, poison, 3, 11, 19, 27, 35, 43, 51, 59) // 2 * 8 * 3 COPYs and more
		batch := mixed(b.claim(), kinds...)
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		defer cancel()
		_, err := b.sink.Append(ctx, batch)
		require.NoError(b, err)
		b.sorted(b, batch, kinds)
	})
}

// TestUnansweredCommitOfASearch loses the COMMIT of a batch with poison, or its answer.
func TestUnansweredCommitOfASearch(t *testing.T) {
	for _, reaches := range []bool{false, true} {
		onBoth(t, func(b *bed) {
			b.exec(refusing)
			k, url := b.cutter()
			through := b.newSink(b.open(url))
			c := b.claim()
			for _, kind := range []string{poison, "later.23000"} {
				kinds := with(20, kind, 0, 7, 19)
				kinds[4] = junk
				batch := mixed(c, kinds...)
				cuts := k.Cuts()
				k.Once(testkit.Cut{Forward: reaches})
				stored, err := through.Append(b.Context(), batch)
				require.NoError(b, err)
				require.Equal(b, sink.Stored{Rows: 16, Quarantined: 4}, stored)
				require.Equal(b, cuts+1, k.Cuts(), "a COMMIT was cut")
				b.sorted(b, batch, kinds)
				c.Next = batch.To
			}
		})
	}
}

// TestSearchModel holds the outcome of many batches against what was put into them.
func TestSearchModel(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		b.exec(counting)
		c := b.claim()
		rapid.Check(b.T, func(rt *rapid.T) {
			kinds := rapid.SliceOfN(rapid.SampledFrom([]string{good, good, good, good, good, junk, poison, "raise.22000", "later.23000", twin}), 1, 40).Draw(rt, "kinds")
			if rapid.Bool().Draw(rt, "faulty") {
				b.exec(`INSERT INTO fault VALUES ($1, $2)`, rapid.IntRange(1, 30).Draw(rt, "copy"), rapid.SampledFrom([]string{"40001", "terminate"}).Draw(rt, "fault"))
			}
			s := b.quietSink()
			batch := mixed(c, kinds...)
			stored, err := s.Append(b.Context(), batch)
			require.NoError(rt, err)
			b.sorted(rt, batch, kinds)
			require.EqualValues(rt, len(kinds), stored.Rows+stored.Quarantined)
			c.Next = batch.To
			b.copies()
			b.exec(`DELETE FROM fault`)
		})
	})
}
