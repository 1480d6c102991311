package testkit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// clusterNodes is the number of nodes of a cluster.
const clusterNodes = 3

// Cluster is an Apache Kafka of three nodes, each a broker and a controller. Its topics have a replica on each and take acks=all while two
// are in sync. A broker that is killed or paused loses its leaderships to the others after its session, 3 s. With two nodes down the cluster has
// no controller: topics, leaders and groups stay as they are, and Restart waits for another node.
type Cluster struct {
	topics
}

// StartKafkaCluster starts a cluster without topics. ctx bounds the start only. The caller must call Close.
func StartKafkaCluster(ctx context.Context, options KafkaOptions) (*Cluster, error) {
	if len(options.JVM) == 0 {
		options.JVM = []string{"-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}
	}
	cluster := &Cluster{}
	cluster.brokers = cluster.Brokers
	id := newClusterID()
	for i := range clusterNodes {
		node, err := newBroker(ctx, options, BrokerID+int32(i), id)
		if err != nil {
			return nil, errors.Join(err, cluster.Close())
		}
		cluster.nodes = append(cluster.nodes, node)
	}
	for _, node := range cluster.nodes {
		node.joinNodes(cluster.nodes)
	}
	formatted := false
	err := onFreePorts(func() error {
		if err := cluster.configure(ctx, &formatted); err != nil {
			return err
		}
		err := each(cluster.nodes, func(node *Broker) error { return node.start(ctx) })
		if err != nil {
			err = errors.Join(err, cluster.kill())
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, cluster.Close())
	}
	return cluster, nil
}

// configure prepares a start on new ports. The ports of all are in the properties of each.
func (c *Cluster) configure(ctx context.Context, formatted *bool) error {
	for _, node := range c.nodes {
		if err := node.choosePorts(); err != nil {
			return err
		}
	}
	for _, node := range c.nodes {
		if err := node.writeProperties(); err != nil {
			return err
		}
	}
	if *formatted {
		return nil
	}
	*formatted = true
	return each(c.nodes, func(node *Broker) error { return node.format(ctx) })
}

// each runs f for all nodes at once and returns all errors.
func each(nodes []*Broker, f func(*Broker) error) error {
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, node := range nodes {
		all.Go(func() { errs[i] = f(node) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Brokers returns the bootstrap addresses of all nodes.
func (c *Cluster) Brokers() []string { return c.BrokersOn(Plaintext) }

// BrokersOn returns the bootstrap addresses of a listener of all nodes, or none when the options did not open it.
func (c *Cluster) BrokersOn(listener Listener) []string {
	var brokers []string
	for _, node := range c.nodes {
		brokers = append(brokers, node.BrokersOn(listener)...)
	}
	return brokers
}

// Nodes returns the brokers, to stop and start them one by one.
func (c *Cluster) Nodes() []*Broker { return slices.Clone(c.nodes) }

// Leader returns the broker that leads a partition, as far as the others know.
func (c *Cluster) Leader(ctx context.Context, topic string, partition int32) (*Broker, error) {
	detail, err := c.partition(ctx, topic, partition)
	if err != nil {
		return nil, err
	}
	for _, node := range c.nodes {
		if node.id == detail.Leader {
			return node, nil
		}
	}
	return nil, fmt.Errorf("topic %s, partition %d, has no leader", topic, partition)
}

// MoveLeader makes a broker the leader of a partition that it has a replica of, and returns when it is.
func (c *Cluster) MoveLeader(ctx context.Context, topic string, partition int32, to *Broker) error {
	detail, err := c.partition(ctx, topic, partition)
	if err != nil {
		return err
	}
	replicas := []*Broker{to}
	for _, node := range c.nodes {
		if node != to && slices.Contains(detail.Replicas, node.id) {
			replicas = append(replicas, node)
		}
	}
	return c.Reassign(ctx, topic, partition, replicas...)
}

// Reassign gives a partition its replicas, which must run. It returns when they are in sync and the first is the leader.
//
// With two replicas a partition can lose its end although the cluster keeps its controllers, on a topic with
// unclean.leader.election.enable=true and min.insync.replicas=1: kill the second, produce, kill the first, restart the second.
func (c *Cluster) Reassign(ctx context.Context, topic string, partition int32, replicas ...*Broker) error {
	var ids []int32
	for _, node := range replicas {
		ids = append(ids, node.id)
	}
	err := c.admin(func(client *kadm.Client) error {
		var request kadm.AlterPartitionAssignmentsReq
		request.Assign(topic, partition, ids)
		responses, err := client.AlterPartitionAssignments(ctx, request)
		if err := errors.Join(err, responses.Error()); err != nil {
			return err
		}
		var set kadm.TopicsSet
		set.Add(topic, partition)
		return poll(ctx, 50*time.Millisecond, func() error {
			detail, err := c.partition(ctx, topic, partition)
			if err != nil {
				return err
			}
			if detail.Leader == ids[0] && slices.Equal(detail.Replicas, ids) && slices.Equal(detail.ISR, slices.Sorted(slices.Values(ids))) {
				return nil
			}
			// The first is the preferred leader once it is in sync.
			results, err := client.ElectLeaders(ctx, kadm.ElectPreferredReplica, set)
			if err == nil {
				err = results[topic][partition].Err
			}
			if err != nil && !errors.Is(err, kerr.ElectionNotNeeded) {
				return err
			}
			return fmt.Errorf("the leader is %d of %v, with %v in sync", detail.Leader, detail.Replicas, detail.ISR)
		})
	})
	if err != nil {
		return fmt.Errorf("give topic %s, partition %d, to the brokers %v: %w", topic, partition, ids, err)
	}
	return nil
}

func (c *Cluster) kill() error {
	return each(c.nodes, func(node *Broker) error {
		if node.process == nil {
			return nil
		}
		return node.Kill()
	})
}

// Close ends the brokers and removes their data.
func (c *Cluster) Close() error {
	return each(c.nodes, (*Broker).Close)
}
