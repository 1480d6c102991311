package sink_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/sink"
)

// cutter returns a proxy before the database that breaks connections at a COMMIT, and the URL that leads through it.
func (b *bed) cutter() (*testkit.Cutter, string) {
	u, err := url.Parse(b.url)
	require.NoError(b, err)
	k := testkit.OwnCutter(b, u.Host)
	through, err := k.URL(b.url)
	require.NoError(b, err)
	return k, through
}

// TestUnansweredCommit loses a COMMIT on its way, and its answer on the way back, and each with a connection that stays open and
// silent: the batch is stored once in every case.
func TestUnansweredCommit(t *testing.T) {
	for _, cut := range []testkit.Cut{{}, {Forward: true}, {Freeze: true}, {Forward: true, Freeze: true}} {
		onBoth(t, func(b *bed) {
			k, url := b.cutter()
			if cut.Freeze {
				sink.SetAttemptTimeout(b.T, 500*time.Millisecond)
				defer k.Thaw()
			}
			through := b.newSink(b.open(url))
			c := b.claim()
			rounds := 3
			if cut.Freeze { // the frozen session holds the lane's row until the server ends it, after 5 s
				rounds = 1
			}
			for range rounds {
				k.Once(cut)
				stored, err := through.Append(b.Context(), batch(c, 50))
				require.NoError(b, err)
				require.Equal(b, sink.Stored{Rows: 50}, stored)
				c.Next += 50
			}
			require.Equal(b, rounds, k.Cuts(), "each COMMIT was cut once")
			b.holds(int64(50*rounds), 0, int64(50*rounds))
		})
	}
}

// TestUnansweredCommitAndFenced: what became of the batch is the new owner's business.
func TestUnansweredCommitAndFenced(t *testing.T) {
	onBoth(t, func(b *bed) {
		k, url := b.cutter()
		through := b.newSink(b.open(url))
		old := b.claim()
		lock, err := b.pool.Begin(b.Context()) // holds the COMMIT's successor up until the lane is claimed anew
		require.NoError(b, err)
		k.Once(testkit.Cut{Forward: true})
		result := make(chan error, 1)
		go func() {
			_, err := through.Append(b.Context(), batch(old, 50))
			result <- err
		}()
		require.Eventually(b, func() bool { return k.Cuts() == 1 }, 10*time.Second, time.Millisecond)
		_, err = lock.Exec(b.Context(), `UPDATE audit_lane SET epoch = epoch + 1, owner = 'another'`)
		require.NoError(b, err)
		require.NoError(b, lock.Commit(b.Context()))
		select {
		case err = <-result:
		case <-time.After(20 * time.Second):
			b.Fatal("Append does not return")
		}
		if err != nil { // settled after the claim; before it, the batch was simply stored
			var fenced *sink.FencedError
			require.ErrorAs(b, err, &fenced)
		}
		b.holds(50, 0, 50)
	})
}
