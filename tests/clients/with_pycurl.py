"""Files over curl's library and libssh2. Arguments: address, port, user, private key, a file, a file to make."""

import sys

import pycurl

address, port, user, key_file, mine, back = sys.argv[1:]
print(pycurl.version)


def transfer(name, prepare):
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, f"sftp://{user}@{address}:{port}/~/{name}")
    curl.setopt(pycurl.SSH_PRIVATE_KEYFILE, key_file)
    curl.setopt(pycurl.SSH_AUTH_TYPES, pycurl.SSH_AUTH_PUBLICKEY)
    # Its host key is not looked at.
    curl.setopt(pycurl.SSH_KNOWNHOSTS, "/dev/null")
    curl.setopt(pycurl.SSH_KEYFUNCTION, lambda *_: pycurl.KHSTAT_FINE)
    prepare(curl)
    curl.perform()
    curl.close()


with open(mine, "rb") as file:
    transfer("file", lambda curl: (curl.setopt(pycurl.UPLOAD, 1), curl.setopt(pycurl.READDATA, file)))
with open(back, "wb") as file:
    transfer("file", lambda curl: curl.setopt(pycurl.WRITEDATA, file))
