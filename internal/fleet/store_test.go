package fleet_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"auditsink/internal/fleet"
	"auditsink/internal/testkit"
)

// TestFleetsApart: what is written is read as it was, by the same database and group alone, until its life ends.
func TestFleetsApart(t *testing.T) {
	server := testkit.OwnRedis(t)
	client := connect(t, server.Address(), redis.Options{})
	groups := []string{"g", "g:replica", "g}:replicas", "{g}", "grüppe ☃", ""}
	for i, group := range groups {
		for _, identity := range []string{"s1.2.3", "s1.2.4"} {
			figures := some(identity + group)
			figures.Group = group
			f := fleet.Open(client, identity, group, time.Hour, ample)
			require.NoError(t, f.Publish(t.Context(), figures))
			require.NoError(t, f.Summarize(t.Context(), fleet.Summary{Leader: figures.Instance, Totals: fleet.Totals{Replicas: i}}))
		}
	}
	for i, group := range groups {
		for _, identity := range []string{"s1.2.3", "s1.2.4"} {
			v := read(t, fleet.Open(client, identity, group, time.Hour, ample))
			want := some(identity + group)
			want.Group = group
			require.Equal(t, []fleet.Figures{want}, v.Replicas)
			require.Empty(t, v.Notes)
			require.Equal(t, identity+group, v.Summary.Leader)
			require.Equal(t, i, v.Summary.Replicas)
		}
		known, err := fleet.Databases(t.Context(), client, group, ample)
		require.NoError(t, err)
		require.ElementsMatch(t, []string{"s1.2.3", "s1.2.4"}, known)
	}
	none, err := fleet.Databases(t.Context(), client, "another", ample)
	require.NoError(t, err)
	require.Empty(t, none)
	require.Empty(t, read(t, fleet.Open(client, "s1.2.3", "another", time.Hour, ample)))
	for _, key := range client.Keys(t.Context(), "*").Val() {
		require.Positive(t, client.PTTL(t.Context(), key).Val(), "%s is there for ever", key)
	}
}

// TestLife: who writes no more is gone when its life ends, and at once where it took its figures back.
func TestLife(t *testing.T) {
	client := connect(t, testkit.OwnRedis(t).Address(), redis.Options{})
	short, long := fleet.Open(client, "s1.2.3", "g", 300*time.Millisecond, ample), fleet.Open(client, "s1.2.3", "g", time.Hour, ample)
	require.NoError(t, short.Publish(t.Context(), some("killed")))
	require.NoError(t, short.Summarize(t.Context(), fleet.Summary{Leader: "killed"}))
	for _, name := range []string{"lives", "leaves"} {
		require.NoError(t, long.Publish(t.Context(), some(name)))
	}
	require.NoError(t, long.Remove(t.Context(), "leaves"))
	require.NotContains(t, instances(read(t, long)), "leaves")
	eventually(t, "the killed one is gone", func() bool { v := read(t, long); return len(v.Replicas) == 1 && v.Summary == nil })
	require.Equal(t, []string{"lives"}, instances(read(t, long)))
	require.Empty(t, read(t, long).Notes, "who is gone is no problem")
}

// TestStrangeValues: what another version wrote, what is damaged, and what isn't ours is left out with a note, and hides nothing else.
func TestStrangeValues(t *testing.T) {
	client := connect(t, testkit.OwnRedis(t).Address(), redis.Options{})
	f := fleet.Open(client, "s1.2.3", "g", time.Hour, ample)
	const base = "auditsink:fleet:{s1.2.3:g}:"
	put := func(instance string, value any) {
		t.Helper()
		require.NoError(t, f.Publish(t.Context(), some(instance)))
		require.NoError(t, client.Set(t.Context(), base+"replica:"+instance, value, 0).Err())
	}
	put("a-damaged", `{"format":1,"instance":"a-damaged"`)
	put("b-newer", `{"format":2,"lanes":"otherwise"}`)
	put("c-large", `{"format":1,"instance":"c-large","version":"`+strings.Repeat("x", 1<<20)+`"}`)
	put("d-other", `{"format":1,"instance":"somebody else"}`)
	put("e-null", `null`)
	put("f-types", `{"format":1,"instance":"f-types","lanes":7}`)
	put("g-list", `x`)
	require.NoError(t, client.Del(t.Context(), base+"replica:g-list").Err())
	require.NoError(t, client.LPush(t.Context(), base+"replica:g-list", "x").Err())
	require.NoError(t, client.LPush(t.Context(), base+"summary", "x").Err())
	require.NoError(t, f.Publish(t.Context(), some("right")))
	sent := func() (bytes int) {
		t.Helper()
		info := client.InfoMap(t.Context(), "stats")
		_, err := fmt.Sscan(info.Item("Stats", "total_net_output_bytes"), &bytes)
		require.NoError(t, err)
		return bytes
	}
	before := sent()
	v := read(t, f)
	require.Less(t, sent()-before, 500<<10, "what is too large isn't fetched")
	require.Equal(t, []string{"right"}, instances(v))
	require.Nil(t, v.Summary)
	require.Len(t, v.Notes, 8)
	notes := strings.Join(v.Notes, "\n")
	for _, want := range []string{
		"a-damaged were left out: it is damaged", "b-newer were left out: it is of format 2, and this version of auditsink reads format 1", "c-large were left out: it is larger than",
		"d-other were left out: they are those of another", "e-null were left out: it is of format 0", "f-types were left out: it is damaged", "g-list were left out: WRONGTYPE",
		"the leader's summary was left out: WRONGTYPE",
	} {
		require.Contains(t, notes, want)
	}
	// The leader writes over it.
	require.NoError(t, f.Summarize(t.Context(), fleet.Summary{Leader: "right"}))
	require.Equal(t, "right", read(t, f).Summary.Leader)

	require.NoError(t, client.Set(t.Context(), base+"replicas", "x", 0).Err())
	_, err := f.Read(t.Context())
	require.ErrorContains(t, err, "WRONGTYPE")
	require.Error(t, f.Publish(t.Context(), some("right")))
}

// TestBounds: many lanes, long reasons and many replicas stay within what is read, and the sums stay whole.
func TestBounds(t *testing.T) {
	client := connect(t, testkit.OwnRedis(t).Address(), redis.Options{})
	f := fleet.Open(client, "s1.2.3", "g", time.Hour, ample)
	big := some("big")
	big.NotReady = strings.Repeat("ä", 1<<20)
	big.Lanes = nil
	for i := range 3000 {
		big.Lanes = append(big.Lanes, fleet.Lane{Topic: strings.Repeat("t", 249), Partition: int32(i), Halted: strings.Repeat("h", 5000)})
	}
	big.LanesOwned, big.LagRecords = 3000, 1<<40
	require.NoError(t, f.Publish(t.Context(), big))
	v := read(t, f)
	require.Empty(t, v.Notes)
	got := v.Replicas[0]
	require.Equal(t, 3000, len(got.Lanes)+got.LanesHidden)
	require.Greater(t, len(got.Lanes), 50)
	require.Equal(t, []any{3000, int64(1 << 40)}, []any{got.LanesOwned, got.LagRecords})
	require.Less(t, len(got.NotReady), 600)
	require.Len(t, big.Lanes, 3000, "the caller's are as they were")
	require.Len(t, big.Lanes[0].Halted, 5000)

	pipe := client.Pipeline()
	for i := range 1000 {
		value, err := json.Marshal(some(instance(i)))
		require.NoError(t, err)
		pipe.ZAdd(t.Context(), "auditsink:fleet:{s1.2.3:g}:replicas", redis.Z{Member: instance(i)})
		pipe.Set(t.Context(), "auditsink:fleet:{s1.2.3:g}:replica:"+instance(i), value, 0)
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	require.NoError(t, f.Publish(t.Context(), big))
	v = read(t, f)
	require.Len(t, v.Replicas, 500)
	require.Equal(t, "big", v.Replicas[0].Instance, "the latest")
	require.EqualValues(t, 500, client.ZCard(t.Context(), "auditsink:fleet:{s1.2.3:g}:replicas").Val())

	// A summary with everything wrong with everybody can be read.
	s := fleet.Summary{Leader: "big", Totals: fleet.Totals{Alerts: map[string][]string{}}}
	for i := range 500 {
		s.Notes = append(s.Notes, strings.Repeat("n", 600))
		for _, alert := range []string{"a", "b", "c"} {
			s.Alerts[alert] = append(s.Alerts[alert], strings.Repeat("x", 200)+fmt.Sprint(i))
		}
	}
	require.NoError(t, f.Summarize(t.Context(), s))
	require.Len(t, read(t, f).Summary.Alerts, 3)
	require.Len(t, s.Alerts["a"], 500, "the caller's are as they were")
}

// TestSummaryOfLaterLeader: nothing of an earlier leader replaces or removes what a later one wrote.
func TestSummaryOfLaterLeader(t *testing.T) {
	client := connect(t, testkit.OwnRedis(t).Address(), redis.Options{})
	f := fleet.Open(client, "s1.2.3", "g", time.Hour, ample)
	began := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	early, late := fleet.Summary{Leader: "early", LeaderSince: began}, fleet.Summary{Leader: "late", LeaderSince: began.Add(time.Second)}
	write := func(s fleet.Summary) { t.Helper(); require.NoError(t, f.Summarize(t.Context(), s)) }
	write(early)
	require.Equal(t, "early", read(t, f).Summary.Leader)
	write(late)
	write(early) // it was frozen, and doesn't know yet
	require.Equal(t, "late", read(t, f).Summary.Leader)
	require.NoError(t, f.Withdraw(t.Context(), "early"))
	require.Equal(t, "late", read(t, f).Summary.Leader)
	require.NoError(t, f.Withdraw(t.Context(), "late"))
	require.Nil(t, read(t, f).Summary)
}

// TestModel: whatever replicas do, and whoever dies, what is read are those that live, each as it wrote last.
func TestModel(t *testing.T) {
	client := connect(t, testkit.OwnRedis(t).Address(), redis.Options{})
	rapid.Check(t, func(t *rapid.T) {
		ctx := t.Context()
		if err := client.FlushAll(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		fleets := map[string]*fleet.Fleet{}
		type model map[string]float64 // rows a second by instance
		want := map[string]model{}
		for _, group := range []string{"g", "h"} {
			fleets[group], want[group] = fleet.Open(client, "s1.2.3", group, time.Hour, ample), model{}
		}
		do := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				group, figures := rapid.SampledFrom([]string{"g", "h"}).Draw(t, "group"), some(instance(rapid.IntRange(0, 4).Draw(t, "instance")))
				figures.RowsPerSecond = float64(rapid.IntRange(0, 9).Draw(t, "rate"))
				do(fleets[group].Publish(ctx, figures))
				want[group][figures.Instance] = figures.RowsPerSecond
			},
			"leave": func(t *rapid.T) {
				group, name := rapid.SampledFrom([]string{"g", "h"}).Draw(t, "group"), instance(rapid.IntRange(0, 4).Draw(t, "instance"))
				do(fleets[group].Remove(ctx, name))
				delete(want[group], name)
			},
			"die": func(t *rapid.T) { // what Redis does when the life of a value ends
				group, name := rapid.SampledFrom([]string{"g", "h"}).Draw(t, "group"), instance(rapid.IntRange(0, 4).Draw(t, "instance"))
				do(client.Del(ctx, "auditsink:fleet:{s1.2.3:"+group+"}:replica:"+name).Err())
				delete(want[group], name)
			},
			"forget": func(t *rapid.T) { // restarted empty, or evicted
				if rapid.IntRange(0, 9).Draw(t, "rarely") == 0 {
					do(client.FlushAll(ctx).Err())
					want["g"], want["h"] = model{}, model{}
				}
			},
			"": func(t *rapid.T) {
				for group, f := range fleets {
					v, err := f.Read(ctx)
					do(err)
					got := model{}
					for _, replica := range v.Replicas {
						got[replica.Instance] = replica.RowsPerSecond
					}
					require.Equal(t, want[group], got, group)
				}
			},
		})
	})
}

// TestAtOnce: many replicas, two that both think they lead, and those who look, all at the same time.
func TestAtOnce(t *testing.T) {
	client := connect(t, testkit.OwnRedis(t).Address(), redis.Options{})
	f := fleet.Open(client, "s1.2.3", "g", time.Hour, ample)
	began := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	const replicas = 8
	group, ctx := errgroup.WithContext(t.Context())
	for i := range replicas {
		group.Go(func() error {
			for range 30 {
				if err := f.Publish(ctx, some(instance(i))); err != nil {
					return err
				}
				if _, err := f.Read(ctx); err != nil {
					return err
				}
				if i < 2 {
					if err := f.Summarize(ctx, fleet.Summary{Leader: instance(i), LeaderSince: began.Add(time.Duration(i) * time.Second)}); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	require.NoError(t, f.Summarize(t.Context(), fleet.Summary{Leader: instance(1), LeaderSince: began.Add(time.Second)}))
	v := read(t, f)
	require.Len(t, v.Replicas, replicas)
	require.Equal(t, instance(1), v.Summary.Leader)
}
