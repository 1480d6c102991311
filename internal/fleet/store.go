package fleet

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// What is written and read is bounded, whoever else writes into this Redis.
const (
	mostReplicas  = 500
	mostDatabases = 100
	mostBytes     = 128 << 10 // of one value
	mostText      = 500       // of a text within one
	mostNamed     = 20        // replicas with an alert, and notes, in a summary
	readAtOnce    = 20        // values in one round trip
)

// prefix begins the names of all keys.
const prefix = "auditsink:fleet:"

// Fleet is the replicas of one consumer group that store in one database. It is safe for concurrent use.
//
// The keys: a value for each replica, with a life; a sorted set of the instances, in which those without a value are the dead; and the leader's summary. Time is
// Redis's alone, since the clocks of replicas differ.
type Fleet struct {
	client  *redis.Client
	name    string // of the database and the group, in keys
	group   string
	base    string
	life    time.Duration
	timeout time.Duration
}

// Open is the fleet of the database with this identity (see postgres.Pool.Identity). Values live for life, and each round trip takes timeout at most.
func Open(client *redis.Client, identity, group string, life, timeout time.Duration) *Fleet {
	// The group may have any character. The braces keep a fleet in one slot of a cluster.
	name := identity + ":" + url.QueryEscape(group)
	return &Fleet{client: client, name: identity, group: group, base: prefix + "{" + name + "}:", life: life, timeout: timeout}
}

func (f *Fleet) replica(instance string) string { return f.base + "replica:" + instance }
func (f *Fleet) replicas() string               { return f.base + "replicas" }
func (f *Fleet) summary() string                { return f.base + "summary" }
func databases(group string) string             { return prefix + "databases:" + url.QueryEscape(group) }

// Publish writes a replica's figures in place of its earlier ones.
func (f *Fleet) Publish(ctx context.Context, figures Figures) error {
	value, err := encode(figures)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	now := float64(time.Now().Unix()) // for the order alone: it decides who is left out of too many
	_, err = f.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, f.replica(figures.Instance), value, f.life)
		p.ZAdd(ctx, f.replicas(), redis.Z{Score: now, Member: figures.Instance})
		p.ZRemRangeByRank(ctx, f.replicas(), 0, -mostReplicas-1)
		p.Expire(ctx, f.replicas(), max(2*f.life, time.Second))
		p.ZAdd(ctx, databases(f.group), redis.Z{Score: now, Member: f.name})
		p.ZRemRangeByRank(ctx, databases(f.group), 0, -mostDatabases-1)
		p.Expire(ctx, databases(f.group), 24*time.Hour)
		return nil
	})
	if err != nil {
		return fmt.Errorf("write the figures of this replica to Redis: %w", err)
	}
	return nil
}

// Remove removes a replica's figures.
func (f *Fleet) Remove(ctx context.Context, instance string) error {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	_, err := f.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Del(ctx, f.replica(instance))
		p.ZRem(ctx, f.replicas(), instance)
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove the figures of this replica from Redis: %w", err)
	}
	return nil
}

// View is what there is of a fleet in Redis.
type View struct {
	Replicas []Figures // by instance
	Summary  *Summary  // nil: nobody has led within its life
	Notes    []string  // what was there and couldn't be read
	dead     []any     // instances without figures
}

// Read reads all figures. What another version wrote, or is damaged, is left out, with a note.
func (f *Fleet) Read(ctx context.Context) (View, error) {
	v, err := f.read(ctx)
	if err != nil {
		return View{}, fmt.Errorf("read the figures of the replicas from Redis: %w", err)
	}
	slices.SortFunc(v.Replicas, func(a, b Figures) int { return cmp.Compare(a.Instance, b.Instance) })
	return v, nil
}

func (f *Fleet) read(ctx context.Context) (View, error) {
	var v View
	instances, err := bounded(ctx, f.timeout, func(ctx context.Context) ([]string, error) {
		return latest(ctx, f.client, f.replicas(), mostReplicas)
	})
	if err != nil {
		return v, err
	}
	for some := range slices.Chunk(instances, readAtOnce) {
		keys := make([]string, len(some))
		for i, instance := range some {
			keys[i] = f.replica(instance)
		}
		values, err := f.values(ctx, keys)
		if err != nil {
			return v, err
		}
		for i, value := range values {
			figures := Figures{}
			switch err := value.decode(&figures); {
			case value.text == "" && value.err == nil:
				v.dead = append(v.dead, some[i])
			case err == nil && figures.Instance != some[i]:
				v.note(some[i], errors.New("they are those of another"))
			case err != nil:
				v.note(some[i], err)
			default:
				v.Replicas = append(v.Replicas, figures)
			}
		}
	}
	values, err := f.values(ctx, []string{f.summary()})
	if err != nil {
		return v, err
	}
	s := Summary{}
	switch err := values[0].decode(&s); {
	case values[0].text == "" && values[0].err == nil:
	case err != nil:
		v.Notes = append(v.Notes, fmt.Sprintf("the leader's summary was left out: %v", err))
	default:
		v.Summary = &s
	}
	return v, nil
}

func (v *View) note(instance string, why error) {
	v.Notes = append(v.Notes, fmt.Sprintf("the figures of %s were left out: %v", clip(instance), why))
}

// bury takes the dead out of the set. One that lives after all is back with its next figures.
func (f *Fleet) bury(ctx context.Context, dead []any) error {
	if len(dead) == 0 {
		return nil
	}
	_, err := bounded(ctx, f.timeout, func(ctx context.Context) (int64, error) { return f.client.ZRem(ctx, f.replicas(), dead...).Result() })
	return err
}

// Summarize writes the leader's summary, unless a later leader has written one: nothing of one that was frozen replaces it.
func (f *Fleet) Summarize(ctx context.Context, s Summary) error {
	s.Format = format
	s.Notes = s.Notes[:min(len(s.Notes), mostNamed)]
	alerts := make(map[string][]string, len(s.Alerts))
	for alert, replicas := range s.Alerts {
		alerts[alert] = replicas[:min(len(replicas), mostNamed)]
	}
	s.Alerts = alerts
	value, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write the summary as JSON: %w", err)
	}
	return f.onSummary(ctx, func(there *Summary, p redis.Pipeliner) {
		if there == nil || !there.LeaderSince.After(s.LeaderSince) {
			p.Set(ctx, f.summary(), value, f.life)
		}
	})
}

// Withdraw removes the summary where it is this instance's.
func (f *Fleet) Withdraw(ctx context.Context, instance string) error {
	return f.onSummary(ctx, func(there *Summary, p redis.Pipeliner) {
		if there != nil && there.Leader == instance {
			p.Del(ctx, f.summary())
		}
	})
}

// onSummary does something to the summary that depends on what it is, unless it changes meanwhile: whoever changed it leads.
func (f *Fleet) onSummary(ctx context.Context, do func(there *Summary, p redis.Pipeliner)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*f.timeout)
	defer cancel()
	err := f.client.Watch(ctx, func(tx *redis.Tx) error {
		text, err := tx.GetRange(ctx, f.summary(), 0, mostBytes).Result()
		if err != nil && !refused(err) {
			return err
		}
		var there *Summary
		s := Summary{}
		if (value{text: text, err: err}).decode(&s) == nil {
			there = &s
		}
		_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error { do(there, p); return nil })
		return err
	}, f.summary())
	if err != nil && !errors.Is(err, redis.TxFailedErr) {
		return fmt.Errorf("write the leader's summary to Redis: %w", err)
	}
	return nil
}

// Databases are the identities of the databases for which replicas of a group have written figures lately: for those who can't ask the database.
func Databases(ctx context.Context, client *redis.Client, group string, timeout time.Duration) ([]string, error) {
	all, err := bounded(ctx, timeout, func(ctx context.Context) ([]string, error) {
		return latest(ctx, client, databases(group), mostDatabases)
	})
	if err != nil {
		return nil, fmt.Errorf("read from Redis which databases have replicas: %w", err)
	}
	return all, nil
}

// latest are the members of a sorted set with the highest scores, the highest first.
func latest(ctx context.Context, client *redis.Client, key string, most int64) ([]string, error) {
	return client.ZRangeArgs(ctx, redis.ZRangeArgs{Key: key, Start: 0, Stop: most - 1, Rev: true}).Result()
}

// value is what a key holds.
type value struct {
	text string
	err  error // Redis refused this one
}

// values reads keys in one round trip. The error is that of the round trip.
func (f *Fleet) values(ctx context.Context, keys []string) ([]value, error) {
	answers, err := bounded(ctx, f.timeout, func(ctx context.Context) ([]redis.Cmder, error) {
		return f.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, key := range keys {
				p.GetRange(ctx, key, 0, mostBytes) // one more than may be
			}
			return nil
		})
	})
	if err != nil && !refused(err) {
		return nil, err
	}
	all := make([]value, len(keys))
	for i, answer := range answers {
		if text, ok := answer.(*redis.StringCmd); ok {
			all[i].text, all[i].err = text.Result()
		}
		if all[i].err != nil && !refused(all[i].err) {
			return nil, all[i].err
		}
	}
	return all, nil
}

// refused tells whether Redis has answered that a key isn't what was asked for.
func refused(err error) bool { return redis.HasErrorPrefix(err, "WRONGTYPE") }

// decode reads a value of our format.
func (v value) decode(into any) error {
	if v.err != nil {
		return v.err
	}
	if len(v.text) > mostBytes {
		return fmt.Errorf("it is larger than %d bytes", mostBytes)
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal([]byte(v.text), &head); err != nil {
		return fmt.Errorf("it is damaged: %w", err)
	}
	if head.Format != format {
		return fmt.Errorf("it is of format %d, and this version of auditsink reads format %d", head.Format, format)
	}
	if err := json.Unmarshal([]byte(v.text), into); err != nil {
		return fmt.Errorf("it is damaged: %w", err)
	}
	return nil
}

// encode writes figures as JSON, with as many lanes as there is room for.
func encode(f Figures) ([]byte, error) {
	f.Format = format
	f.NotReady = clip(f.NotReady)
	f.Lanes = slices.Clone(f.Lanes)
	for i := range f.Lanes {
		f.Lanes[i].Halted = clip(f.Lanes[i].Halted)
	}
	for {
		text, err := json.Marshal(f)
		if err != nil {
			return nil, fmt.Errorf("write the figures as JSON: %w", err)
		}
		if len(text) <= mostBytes {
			return bytes.TrimSpace(text), nil
		}
		if len(f.Lanes) == 0 {
			return nil, fmt.Errorf("the figures of this replica are larger than %d bytes", mostBytes)
		}
		keep := len(f.Lanes) / 2
		f.LanesHidden += len(f.Lanes) - keep
		f.Lanes = f.Lanes[:keep]
	}
}

func clip(text string) string {
	if len(text) <= mostText {
		return text
	}
	return strings.ToValidUTF8(text[:mostText], "") + "…"
}

// bounded asks within a time limit.
func bounded[T any](ctx context.Context, timeout time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return ask(ctx)
}
