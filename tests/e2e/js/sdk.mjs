// One run of the AWS SDK for JavaScript against $CORDWOOD_ENDPOINT: each step throws when the answer is not AWS's.
// Usage: node sdk.mjs. Prints "ok NAME" for each step.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import http from "node:http";
import { Readable } from "node:stream";
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CopyObjectCommand,
  CreateBucketCommand,
  CreateMultipartUploadCommand,
  DeleteBucketCommand,
  DeleteObjectCommand,
  DeleteObjectsCommand,
  GetBucketLocationCommand,
  GetObjectAttributesCommand,
  GetObjectCommand,
  GetObjectTaggingCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListBucketsCommand,
  ListMultipartUploadsCommand,
  ListPartsCommand,
  PutBucketVersioningCommand,
  PutObjectCommand,
  PutObjectTaggingCommand,
  S3Client,
  UploadPartCommand,
  UploadPartCopyCommand,
  paginateListObjectsV2,
  waitUntilBucketExists,
  waitUntilObjectNotExists,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { createPresignedPost } from "@aws-sdk/s3-presigned-post";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";

const MIB = 1 << 20;
const endpoint = process.env.CORDWOOD_ENDPOINT;
const credentials = {
  accessKeyId: process.env.AWS_ACCESS_KEY_ID,
  secretAccessKey: process.env.AWS_SECRET_ACCESS_KEY,
};
const settings = { endpoint, region: "us-east-1", credentials, maxAttempts: 1 };
const s3 = new S3Client({ ...settings, forcePathStyle: true });
const Bucket = "javascript";
const md5 = (data) => createHash("md5").update(data).digest("hex");
const bytes = async (answer) => Buffer.from(await answer.Body.transformToByteArray());

/** The error that a command ends in, as (status, name). */
async function refused(command, client = s3) {
  try {
    await client.send(command);
  } catch (error) {
    return `${error.$metadata?.httpStatusCode} ${error.name}`;
  }
  return "no error";
}

const steps = {
  async buckets() {
    await s3.send(new CreateBucketCommand({ Bucket }));
    await waitUntilBucketExists({ client: s3, maxWaitTime: 10 }, { Bucket });
    assert.equal((await s3.send(new HeadBucketCommand({ Bucket }))).BucketRegion, "us-east-1");
    assert.equal((await s3.send(new GetBucketLocationCommand({ Bucket }))).LocationConstraint, undefined);
    const { Buckets } = await s3.send(new ListBucketsCommand({ Prefix: Bucket }));
    assert.ok(Buckets.some((bucket) => bucket.Name === Bucket && bucket.CreationDate instanceof Date));
    assert.equal(await refused(new HeadBucketCommand({ Bucket: "no-such-bucket" })), "404 NotFound");
    assert.equal(await refused(new GetObjectCommand({ Bucket: "no-such-bucket", Key: "k" })), "404 NoSuchBucket");
  },

  async objects() {
    const Metadata = { colour: "blue" };
    const put = await s3.send(
      new PutObjectCommand({ Bucket, Key: "a b/ü+&=.txt", Body: "hello", ContentType: "text/x", Metadata, Tagging: "t=1" }),
    );
    assert.equal(put.ETag, `"${md5("hello")}"`);
    assert.ok(put.ChecksumCRC32, "the SDK's default checksum comes back");
    const got = await s3.send(new GetObjectCommand({ Bucket, Key: "a b/ü+&=.txt" }));
    assert.equal(await got.Body.transformToString(), "hello");
    assert.deepEqual([got.ContentType, got.Metadata, got.TagCount], ["text/x", Metadata, 1]);
    const part = await s3.send(new GetObjectCommand({ Bucket, Key: "a b/ü+&=.txt", Range: "bytes=1-3" }));
    assert.equal(await part.Body.transformToString(), "ell");
    assert.equal(part.ContentRange, "bytes 1-3/5");
    const named = { Bucket, Key: "a b/ü+&=.txt" };
    assert.match(await refused(new GetObjectCommand({ ...named, IfNoneMatch: put.ETag })), /^304 /);
    assert.equal(await refused(new GetObjectCommand({ ...named, IfMatch: '"x"' })), "412 PreconditionFailed");
    assert.equal(await refused(new GetObjectCommand({ ...named, Range: "bytes=9-" })), "416 InvalidRange");
    assert.equal(await refused(new PutObjectCommand({ ...named, Body: "", IfNoneMatch: "*" })), "412 PreconditionFailed");
    assert.equal(await refused(new GetObjectCommand({ Bucket, Key: "none" })), "404 NoSuchKey");
    assert.equal(await refused(new HeadObjectCommand({ Bucket, Key: "none" })), "404 NotFound");
  },

  async checksums() {
    for (const algorithm of ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]) {
      const Key = `sum/${algorithm}`;
      const put = await s3.send(new PutObjectCommand({ Bucket, Key, Body: "data", ChecksumAlgorithm: algorithm }));
      const head = await s3.send(new HeadObjectCommand({ Bucket, Key, ChecksumMode: "ENABLED" }));
      assert.ok(head[`Checksum${algorithm}`], algorithm);
      assert.equal(head[`Checksum${algorithm}`], put[`Checksum${algorithm}`]);
      const got = await s3.send(new GetObjectCommand({ Bucket, Key, ChecksumMode: "ENABLED" }));
      assert.equal(await got.Body.transformToString(), "data");
    }
  },

  async streams() {
    // A stream of known length goes as aws-chunked with a trailing checksum.
    const data = randomBytes(300_000);
    const Body = Readable.from([data.subarray(0, 100_000), data.subarray(100_000)]);
    await s3.send(new PutObjectCommand({ Bucket, Key: "stream", Body, ContentLength: data.length }));
    const got = await s3.send(new GetObjectCommand({ Bucket, Key: "stream" }));
    assert.deepEqual(await bytes(got), data);
    assert.equal(got.ContentEncoding, undefined);
  },

  async uploads() {
    const data = randomBytes(12 * MIB);
    for (const [Key, Body] of [["upload", data], ["upload-stream", Readable.from([data])]]) {
      const upload = new Upload({ client: s3, params: { Bucket, Key, Body }, partSize: 5 * MIB, queueSize: 3 });
      const done = await upload.done();
      assert.match(done.ETag, /-3"$/);
      assert.equal(done.Location, `${endpoint}/${Bucket}/${Key}`);
      assert.deepEqual(await bytes(await s3.send(new GetObjectCommand({ Bucket, Key }))), data);
    }
    const { ObjectParts, Checksum } = await s3.send(
      new GetObjectAttributesCommand({ Bucket, Key: "upload", ObjectAttributes: ["ObjectParts", "Checksum"] }),
    );
    assert.equal(ObjectParts.TotalPartsCount, 3);
    assert.ok(Checksum);
    const second = await s3.send(new GetObjectCommand({ Bucket, Key: "upload", PartNumber: 2 }));
    assert.equal(second.PartsCount, 3);
    assert.deepEqual(await bytes(second), data.subarray(5 * MIB, 10 * MIB));
  },

  async parts() {
    const target = { Bucket, Key: "parts" };
    const { UploadId } = await s3.send(new CreateMultipartUploadCommand(target));
    const { Uploads } = await s3.send(new ListMultipartUploadsCommand({ Bucket }));
    assert.deepEqual(Uploads.map((each) => each.UploadId), [UploadId]);
    const Body = randomBytes(5 * MIB);
    const one = await s3.send(new UploadPartCommand({ ...target, UploadId, PartNumber: 1, Body }));
    const two = await s3.send(
      new UploadPartCopyCommand({
        ...target, UploadId, PartNumber: 2, CopySource: `${Bucket}/upload`, CopySourceRange: "bytes=0-99",
      }),
    );
    const { Parts } = await s3.send(new ListPartsCommand({ ...target, UploadId }));
    assert.deepEqual(Parts.map((each) => each.Size), [5 * MIB, 100]);
    const wrong = { Parts: [{ PartNumber: 1, ETag: '"none"' }] };
    assert.equal(
      await refused(new CompleteMultipartUploadCommand({ ...target, UploadId, MultipartUpload: wrong })),
      "400 InvalidPart",
    );
    const MultipartUpload = {
      Parts: [{ PartNumber: 1, ETag: one.ETag }, { PartNumber: 2, ETag: two.CopyPartResult.ETag }],
    };
    await s3.send(new CompleteMultipartUploadCommand({ ...target, UploadId, MultipartUpload }));
    const aborted = await s3.send(new CreateMultipartUploadCommand(target));
    await s3.send(new AbortMultipartUploadCommand({ ...target, UploadId: aborted.UploadId }));
    assert.equal(await refused(new ListPartsCommand({ ...target, UploadId: aborted.UploadId })), "404 NoSuchUpload");
  },

  async copies() {
    await s3.send(new CopyObjectCommand({ Bucket, Key: "copy", CopySource: `${Bucket}/${encodeURIComponent("a b/ü+&=.txt")}` }));
    const got = await s3.send(new GetObjectCommand({ Bucket, Key: "copy" }));
    assert.equal(await got.Body.transformToString(), "hello");
    await s3.send(new PutObjectTaggingCommand({ Bucket, Key: "copy", Tagging: { TagSet: [{ Key: "k", Value: "ü" }] } }));
    const { TagSet } = await s3.send(new GetObjectTaggingCommand({ Bucket, Key: "copy" }));
    assert.deepEqual(TagSet, [{ Key: "k", Value: "ü" }]);
  },

  async listing() {
    const keys = [];
    for await (const page of paginateListObjectsV2({ client: s3, pageSize: 2 }, { Bucket })) {
      assert.ok(page.KeyCount <= 2);
      keys.push(...page.Contents.map((each) => each.Key));
    }
    assert.deepEqual(keys, [...keys].sort());
    assert.ok(keys.includes("a b/ü+&=.txt"));
  },

  async presigned() {
    const read = new GetObjectCommand({ Bucket, Key: "a b/ü+&=.txt", ResponseContentType: "text/other" });
    const url = await getSignedUrl(s3, read, { expiresIn: 60 });
    const got = await fetch(url);
    assert.deepEqual([got.status, got.headers.get("content-type"), await got.text()], [200, "text/other", "hello"]);
    const write = await getSignedUrl(s3, new PutObjectCommand({ Bucket, Key: "signed" }), { expiresIn: 60 });
    assert.equal((await fetch(write, { method: "PUT", body: "from a url" })).status, 200);
    assert.equal((await fetch(url.replace("Expires=60", "Expires=61"))).status, 403);
  },

  async form() {
    const { url, fields } = await createPresignedPost(s3, {
      Bucket, Key: "form/${filename}", Conditions: [["content-length-range", 1, 20]], Fields: { acl: "private" }, Expires: 60,
    });
    const send = (text) => {
      const form = new FormData();
      for (const [name, value] of Object.entries(fields)) form.append(name, value);
      form.append("file", new Blob([text]), "f.txt");
      return fetch(url, { method: "POST", body: form });
    };
    assert.equal((await send("in a form")).status, 204);
    const tooLarge = await send("x".repeat(21));
    assert.deepEqual([tooLarge.status, /<Code>EntityTooLarge</.test(await tooLarge.text())], [400, true]);
    const got = await s3.send(new GetObjectCommand({ Bucket, Key: "form/f.txt" }));
    assert.equal(await got.Body.transformToString(), "in a form");
  },

  async "virtual hosts"() {
    // No resolver knows the names of a test, so the connections go where the endpoint is.
    const { hostname, port } = new URL(endpoint);
    const lookup = (name, options, done) =>
      options.all ? done(null, [{ address: hostname, family: 4 }]) : done(null, hostname, 4);
    const client = new S3Client({
      ...settings,
      endpoint: `http://${process.env.CORDWOOD_DOMAIN}:${port}`,
      requestHandler: { httpAgent: new http.Agent({ lookup }) },
    });
    const put = new PutObjectCommand({ Bucket, Key: "by host", Body: "x" });
    put.middlewareStack.add(
      (next) => (call) => {
        assert.equal(call.request.hostname, `${Bucket}.${process.env.CORDWOOD_DOMAIN}`);
        return next(call);
      },
      { step: "finalizeRequest", priority: "low" },
    );
    await client.send(put);
    const got = await client.send(new GetObjectCommand({ Bucket, Key: "by host" }));
    assert.equal(await got.Body.transformToString(), "x");
    client.destroy();
  },

  async versions() {
    await s3.send(new PutBucketVersioningCommand({ Bucket, VersioningConfiguration: { Status: "Enabled" } }));
    const { VersionId } = await s3.send(new PutObjectCommand({ Bucket, Key: "v", Body: "1" }));
    const marker = await s3.send(new DeleteObjectCommand({ Bucket, Key: "v" }));
    assert.equal(marker.DeleteMarker, true);
    await waitUntilObjectNotExists({ client: s3, maxWaitTime: 10 }, { Bucket, Key: "v" });
    assert.equal(await refused(new GetObjectCommand({ Bucket, Key: "v", VersionId: marker.VersionId })), "405 MethodNotAllowed");
    const got = await s3.send(new GetObjectCommand({ Bucket, Key: "v", VersionId }));
    assert.equal(await got.Body.transformToString(), "1");
    const Objects = [{ Key: "v", VersionId }, { Key: "v", VersionId: marker.VersionId }];
    const { Deleted, Errors } = await s3.send(new DeleteObjectsCommand({ Bucket, Delete: { Objects } }));
    assert.deepEqual([Deleted.length, Errors], [2, undefined]);
    assert.equal(await refused(new DeleteBucketCommand({ Bucket })), "409 BucketNotEmpty");
  },

  async strangers() {
    const wrong = new S3Client({ ...settings, forcePathStyle: true, credentials: { ...credentials, secretAccessKey: "x" } });
    assert.equal(await refused(new GetObjectCommand({ Bucket, Key: "copy" }), wrong), "403 SignatureDoesNotMatch");
    const nobody = new S3Client({ ...settings, forcePathStyle: true, signer: { sign: async (request) => request } });
    assert.equal(await refused(new GetObjectCommand({ Bucket, Key: "copy" }), nobody), "403 AccessDenied");
    wrong.destroy();
    nobody.destroy();
  },
};

for (const [name, step] of Object.entries(steps)) {
  await step();
  console.log(`ok ${name}`);
}
s3.destroy();
