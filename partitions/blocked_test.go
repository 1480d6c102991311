package partitions

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever keeps readers out of a partition for as long as he likes holds up neither the leader nor the other partitions.
func TestAPartitionLockedAgainstReaders(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		january, february := month(t, db, "2015-01-01"), month(t, db, "2015-02-01")
		march := month(t, db, "2015-03-01")
		for _, b := range []Bounds{january, february, march} {
			row(t, db, b.From.Format(time.DateOnly), "90")
		}
		row(t, db, "2015-03-20", "standard")
		term, now := lead(t, db, "me"), at("2015-08-01")
		tx := begin(t, db)
		exec(t, tx, `LOCK TABLE audit_log_2015_01 IN ACCESS EXCLUSIVE MODE`)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // what waits without end fails
		defer cancel()

		fates, err := Outlook(ctx, db, now, enforced)
		require.ErrorContains(t, err, "audit_log_2015_01")
		require.Len(t, fates, 2, "the others are told")
		done, err := Retire(ctx, db, term, now, enforced)
		require.NoError(t, err)
		require.Equal(t, []string{"2015_01 waits", "2015_02 verified", "2015_02 detached"}, what(done))
		done, err = Expire(ctx, db, term, now, enforced)
		require.NoError(t, err)
		require.Equal(t, []string{"2015_01 waits", "2015_03 expired"}, what(done))

		require.NoError(t, tx.Rollback(ctx))
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
	})
}
