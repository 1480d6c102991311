package main

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
)

// TestLanesAcceptAndReset: a topic is made again under a running worker. Its lanes halt and say why, another topic goes on, and after the
// operator's word the same process goes on with the new topic.
func TestLanesAcceptAndReset(t *testing.T) {
	t.Parallel()
	broker, databaseURL := testkit.Kafka(t), testkit.Postgres(t, 18)
	topic, other := testkit.Name(t), testkit.Name(t)
	broker.CreateTopic(t, topic, 2, nil)
	broker.CreateTopic(t, other, 1, nil)
	s := workerSettings(broker, topic+","+other, databaseURL).with(settings{"KAFKA_GROUP": topic})
	succeed(t, s, "migrate", "up")
	p := start(t, s, "run")
	publish(t, broker, topic, 100, 1)
	publish(t, broker, other, 10, 2)
	rows := func(topic string) int64 {
		return number(t, databaseURL, `SELECT count(*) FROM audit_log JOIN audit_lane USING (lane_id) WHERE topic = $1`, topic)
	}
	eventually(t, "all is stored", func() bool { return rows(topic) == 100 && rows(other) == 10 })

	code, _, errs := execute(t, s, "lanes", "accept", topic, "--reason", "nothing is wrong")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "has not halted")

	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...))
	require.NoError(t, err)
	defer client.Close()
	_, err = kadm.NewClient(client).DeleteTopics(t.Context(), topic)
	require.NoError(t, err)
	eventually(t, "the topic is made again", func() bool { return broker.NewTopic(t.Context(), topic, 3, nil) == nil })
	publish(t, broker, topic, 60, 3)
	eventually(t, "its lanes halt", func() bool { return p.metric(t, "lanes_halted") >= 2 })
	status, body := p.get(t, "/readyz")
	require.Equal(t, 503, status)
	require.Contains(t, body, "deleted")
	publish(t, broker, other, 10, 4)
	eventually(t, "the other topic goes on", func() bool { return rows(other) == 20 })
	require.EqualValues(t, 100, rows(topic))
	eventually(t, "it is on record", func() bool {
		return number(t, databaseURL, `SELECT count(*) FROM audit_lane WHERE topic = $1 AND state = 'halted'`, topic) == 2
	})
	list := succeed(t, s, "lanes", "list")
	require.Regexp(t, `(?m)^\d+ +`+topic+` +1 +`+topic+` +halted +50 `, list)
	require.Regexp(t, `(?m)^lane \d+ halted: .*deleted`, list)

	for _, args := range [][]string{{"accept", topic}, {"accept", "--reason", "x"}, {"accept", topic, "--all", "--reason", "x"}, {"reset", topic, "--reason", "x"}, {"reset", topic, "--to", "-1", "--reason", "x"}} {
		code, _, errs := execute(t, s, append([]string{"lanes"}, args...)...)
		require.Equal(t, 2, code, "%q: %s", args, errs)
	}
	code, _, errs = execute(t, s, "lanes", "accept", "no-such-topic", "--reason", "x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "no lane no-such-topic")
	code, _, errs = execute(t, s, "lanes", "reset", topic, "--to", "earliest", "--reason", "x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "lanes accept")

	out := succeed(t, s, "lanes", "accept", topic, "--reason", "made again on purpose")
	require.Regexp(t, `(?m)^lane \d+ \(`+topic+`/1\) is retired at offset 50; lane \d+ begins at offset 0$`, out)
	require.Contains(t, out, "2 lanes changed")
	eventually(t, "the new topic is stored", func() bool { return rows(topic) == 160 })
	require.EqualValues(t, 160, number(t, databaseURL, `SELECT count(DISTINCT (lane_id, lane_offset)) FROM audit_log JOIN audit_lane USING (lane_id) WHERE topic = $1`, topic))
	eventually(t, "it is ready", func() bool { status, _ := p.get(t, "/readyz"); return status == 200 })
	require.Zero(t, p.metric(t, "lanes_halted"))
	require.EqualValues(t, 5, number(t, databaseURL, `SELECT count(*) FROM audit_lane_event WHERE kind = 'accepted' AND reason = 'made again on purpose' AND client LIKE '%@%'`))

	// A reset forward leaves a gap on record, and the worker follows; one back over what is stored is refused.
	lane := number(t, databaseURL, `SELECT lane_id FROM audit_lane WHERE topic = $1`, other)
	code, _, errs = execute(t, s, "lanes", "reset", other, "--to", "earliest", "--reason", "x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "offset 0 is stored already")
	code, _, errs = execute(t, s, "lanes", "reset", other+"/0", "--to", "21", "--reason", "x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "from 0 to 20")
	p.stop(t)
	publish(t, broker, other, 10, 5)
	var changed []laneOutcome
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "lanes", "reset", fmt.Sprint(lane), "--to", "25", "--reason", "poisoned, agreed with the owner", "--json")), &changed))
	require.Equal(t, []laneOutcome{{LaneID: int32(lane), Topic: other, Was: 20, NextOffset: 25}}, changed)
	p = start(t, s, "run")
	eventually(t, "the rest is stored", func() bool { return rows(other) == 25 })
	require.EqualValues(t, 1, number(t, databaseURL, `SELECT count(*) FROM audit_gap WHERE lane_id = $1 AND kind = 'skipped' AND from_offset = 20 AND to_offset = 25`, lane))
	require.Contains(t, succeed(t, s, "lanes", "list", "--json"), `"state": "retired"`)
	p.stop(t)
}
